"""Folding: the fastest circuit that fits, in what a device has."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from tapeout.compiler.errors import BudgetError, InvalidModelError
from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga import report, serial
from tapeout.targets.fpga.cost import memory, multipliers
from tapeout.targets.fpga.devices import device
from tapeout.targets.fpga.fold import USABLE, fold, total
from tapeout.targets.fpga.latency import with_latency
from tests.targets.fpga.networks import Network, circuit, codes

DEVICES = ("xc7z020", "xc7a100t", "xcu250", "ecp5-85")


@functools.cache
def residual() -> tuple[Network, d.Graph]:
    net = Network((1, 16, 16, 16), 21)
    x = net.conv(net.input(), (16, 16), 3, pads=[1, 1, 1, 1])
    a = net.conv(x, (16, 16), 3, relu=False, pads=[1, 1, 1, 1])
    y = net.rounded(net.node("Relu", [net.node("Add", [x, a])]), 0.3, -128)
    y = net.conv(y, (16, 16), 3, group=16)
    y = net.rounded(net.node("GlobalAveragePool", [y]), 0.2, -128)
    y = net.rounded(net.node("Flatten", [y]), 0.2, -128)
    y = net.dense(y, (16, 10), relu=False)
    return net, circuit(net.model(y))


@pytest.mark.parametrize("name", DEVICES)
def test_it_fits_and_divides(name: str) -> None:
    _, whole = residual()
    graph, place = fold(replace(whole, device=name), device(name)), device(name)
    taken = total(graph, place)
    assert taken.dsp <= place.dsp and taken.bram <= place.bram and taken.lut <= USABLE * place.lut
    assert graph.interval == taken.cycles == max(n.interval for n in graph.nodes)
    for node in graph.nodes:
        x = graph.tensors[node.inputs[0].tensor]
        assert all(x.channels % s.lanes == 0 for s in node.inputs)
        assert node.output.channels % node.lanes == 0
        if isinstance(node, d.Folded):
            assert node.output.channels % node.pe == 0 and node.pe % node.lanes == 0
        if isinstance(node, d.Conv | d.Dense):
            assert node.simd == node.inputs[0].lanes


def test_a_larger_device_is_not_slower() -> None:
    _, whole = residual()
    small, large = fold(whole, device("ecp5-85")), fold(whole, device("xcu250"))
    assert large.interval < small.interval


def test_folding_changes_no_code() -> None:
    net, whole = residual()
    data = net.data(5)
    before, after = codes(whole, data), codes(fold(whole, device("xc7z020")), data)
    name = whole.output_ports[0].tensor
    np.testing.assert_array_equal(before[name], after[name])


def test_what_does_not_fit_is_told_by_layer() -> None:
    _, whole = residual()
    tiny = replace(device("xc7z020"), name="tiny", bram=4, dsp=4)
    with pytest.raises(BudgetError) as found:
        fold(whole, tiny)
    text = found.value.message
    assert (
        "does not fit tiny" in text
        and "multipliers of 4" in text
        and "18 kbit of 4" in text
        and "'conv" in text
    )
    assert found.value.exit_code == 6 and found.value.hint


def test_sizes_of_memories_and_products() -> None:
    assert memory(36, 512) == 1 and memory(37, 512) == 2 and memory(8, 2048) == 1 and memory(8, 2049) == 2
    place = device("xc7z020")
    assert multipliers(8, 24, place) == 1 and multipliers(25, 17, place) == 1
    assert multipliers(21, 28, place) == 2 and multipliers(26, 17, place) == 2


def test_latency_is_more_than_the_interval_and_less_than_the_sum() -> None:
    graph = with_latency(fold(residual()[1], device("xc7z020")))
    assert graph.interval < graph.latency < sum(n.interval + n.latency for n in graph.nodes)
    assert all(n.latency > 0 for n in graph.nodes)


def test_the_report_adds_up() -> None:
    _, whole = residual()
    graph = fold(whole, device("xc7z020"))
    said, taken = report.report(graph, whole), total(graph, device("xc7z020"))
    assert said["predicted"]["dsp"] == taken.dsp == sum(layer["dsp"] for layer in said["layers"])
    assert said["predicted"]["interval_cycles"] == graph.interval
    assert len(said["layers"]) == len(graph.nodes)
    lines = report.text(said).splitlines()
    assert lines[-1].startswith("not proven here:") and f"{graph.interval:,} cycles an inference" in lines[1]


def test_a_circuit_is_kept_as_it_was() -> None:
    net, whole = residual()
    graph = fold(whole, device("xc7z020"))
    data = serial.dump(graph)
    again = serial.load(data)
    assert serial.dump(again) == data and again.interval == graph.interval
    made, expected = codes(again, net.data(2)), codes(graph, Network((1, 16, 16, 16), 21).data(2))
    assert made.keys() == expected.keys()


@pytest.mark.parametrize("damage", ["cut", "bit", "schema", "other"])
def test_a_damaged_circuit_is_refused(damage: str) -> None:
    data = serial.dump(residual()[1])
    changed = {
        "cut": data[: len(data) // 2],
        "bit": data.replace(b'"interval": 0', b'"interval": 1', 1),
        "schema": data.replace(serial.SCHEMA.encode(), b"tapeout.circuit/9"),
        "other": b'{"schema": "tapeout.circuit/1"}',
    }[damage]
    assert changed != data
    with pytest.raises(InvalidModelError, match=r"circuit\.json"):
        serial.load(changed)
