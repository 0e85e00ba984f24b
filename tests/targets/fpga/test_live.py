"""Channels that nothing needs are removed, and nothing that is left changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga import live
from tests.targets.fpga.networks import Network, circuit, codes


def edited(net: Network, which: int, edit: Any) -> None:
    """Change an initializer of a network; `which` counts those that are int32 biases, or -1 - `which` int8 weights."""
    kind = np.int32 if which >= 0 else np.int8
    found = [
        w for w in net.weights if numpy_helper.to_array(w).dtype == kind and numpy_helper.to_array(w).any()
    ]
    found = found if which >= 0 else [w for w in found if numpy_helper.to_array(w).ndim == 4]
    chosen = found[which if which >= 0 else -1 - which]
    array = numpy_helper.to_array(chosen).copy()
    edit(array)
    chosen.CopyFrom(numpy_helper.from_array(array, chosen.name))


def network(pads: tuple[int, ...] = (1, 1, 1, 1)) -> Network:
    """Convolution, depthwise convolution, convolution, 8 channels in the middle: 2 and 5 never leave the lowest code
    of the first one, 6 is read with weights 0 by the last one."""
    net = Network((1, 3, 8, 8), 12)
    y = net.conv(net.input(), (3, 8), 3, pads=list(pads))
    y = net.conv(y, (8, 8), 3, pads=list(pads), group=8)
    net.result = net.conv(y, (8, 4), 3, relu=False, pads=list(pads))  # type: ignore[attr-defined]

    def never(bias: Any) -> None:
        bias[[2, 5]] = -(10**8)

    def unread(weights: Any) -> None:
        weights[:, 6] = 0

    edited(net, 0, never)
    edited(net, -3, unread)
    return net


@pytest.mark.parametrize("multiple", [1, 2, 4, 8])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1)])
def test_what_is_left_computes_the_same(multiple: int, pads: tuple[int, ...]) -> None:
    net = network(pads)
    whole = circuit(net.model(net.result))  # type: ignore[attr-defined]
    kept = live.rounded(whole, live.kept(whole), multiple)
    less = live.without(whole, kept)
    data = net.data(30)
    before, after = codes(whole, data), codes(less, data)
    for name, found in after.items():
        np.testing.assert_array_equal(found, before[name][..., kept[name]])
    # Behind the depthwise convolution channels 2 and 5 are numbers other than the padding's.
    needed = 7 if any(pads) else 5
    assert [n.output.channels for n in less.nodes] == [-(-needed // multiple) * multiple] * 2 + [4]
    assert live.operations(less) <= live.operations(whole)
    widths = [n.accumulator for n in less.nodes if isinstance(n, d.Folded)]
    assert max(widths) <= 20  # the biases that keep channels 2 and 5 down are gone


def test_a_constant_that_padding_interrupts_stays() -> None:
    """Where padding holds another code than a constant channel, the channel is no number."""
    net = Network((1, 3, 8, 8), 13)
    y = net.conv(net.input(), (3, 4), 3)
    net.result = net.conv(y, (4, 4), 3, relu=False, pads=[1, 1, 1, 1])  # type: ignore[attr-defined]

    def always(bias: Any) -> None:
        bias[1] = 10**8  # channel 1 is always the highest code; padding is the lowest

    edited(net, 0, always)
    whole = circuit(net.model(net.result))  # type: ignore[attr-defined]
    assert whole.nodes[0].output.low[1] == whole.nodes[0].output.high[1] == 127
    assert live.kept(whole)[whole.nodes[0].output.name].all()


def test_inputs_and_outputs_keep_their_channels() -> None:
    net = network()

    def never(bias: Any) -> None:
        bias[:] = -(10**8)

    edited(net, 2, never)
    whole = circuit(net.model(net.result))  # type: ignore[attr-defined]
    less = live.without(whole, live.kept(whole))
    assert less.inputs[0].channels == 3 and less.nodes[-1].output.channels == 4
    made = codes(less, net.data(3))[less.output_ports[0].tensor]
    assert np.all(made == whole.nodes[-1].output.low)


def test_a_residual_keeps_what_either_side_needs() -> None:
    net = Network((1, 4, 6, 6), 14)
    x = net.input()
    a = net.conv(x, (4, 8), 1)
    b = net.conv(a, (8, 8), 1)
    y = net.rounded(net.node("Add", [a, b]), 0.3, -128)
    y = net.conv(y, (8, 2), 1, relu=False)

    def never(bias: Any) -> None:
        bias[[0, 1]] = -(10**8)

    edited(net, 0, never)  # constant in `a`, alive in `b`
    whole = circuit(net.model(y))
    kept = live.kept(whole)
    less = live.without(whole, kept)
    data = net.data(10)
    before, after = codes(whole, data), codes(less, data)
    for name, found in after.items():
        np.testing.assert_array_equal(found, before[name][..., kept[name]])
    assert [n.output.channels for n in less.nodes] == [8, 8, 8, 2]
