"""How much of each layer is computed at once: the fastest circuit that fits a device.

Every node has a list of foldings, each with its cycles and its cost. For a number of cycles that no node may exceed,
each node takes the folding that is cheapest in the share of the device that it uses; the smallest such number whose
sum fits is found by bisection.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tapeout.sdk import BudgetError
from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga import live
from tapeout.targets.fpga.cost import Cost, cost, cycles, products
from tapeout.targets.fpga.depths import with_depths
from tapeout.targets.fpga.devices import Device

# The share of a device's lookup tables that placement and routing can use.
USABLE = 0.8
MULTIPLES = (1, 2, 4, 8)  # to which numbers of channels may be rounded so that they divide


@dataclass(frozen=True)
class Folding:
    """One way to build a node."""

    node: d.Node
    cost: Cost
    share: float  # of the device: the sum of the shares of its kinds


def fold(graph: d.Graph, device: Device) -> d.Graph:
    """The circuit without channels that nothing needs, folded to the fewest cycles between inferences that fit.

    Raises BudgetError where not even the smallest folding fits: by how much, and the layers that take most.
    """
    needed = live.kept(graph)
    best: d.Graph | None = None
    seen: set[tuple[int, ...]] = set()
    problem: BudgetError | None = None
    for multiple in MULTIPLES:
        narrow = live.without(graph, live.rounded(graph, needed, multiple))
        sizes = tuple(n.output.channels for n in narrow.nodes)
        if sizes in seen:
            continue
        seen.add(sizes)
        try:
            found = fastest(narrow, device)
        except BudgetError as error:
            problem = problem or error
            continue
        if best is None or found.interval < best.interval:
            best = found
    if best is None:
        assert problem is not None
        raise problem
    return best


def fastest(graph: d.Graph, device: Device) -> d.Graph:
    """The folding of a circuit with the fewest cycles between inferences that fits. Raises BudgetError."""
    tensors = graph.tensors
    options = [list(foldings(n, tensors[n.inputs[0].tensor], device)) for n in graph.nodes]
    limits = sorted({o.cost.cycles for row in options for o in row})
    limits = [t for t in limits if t >= max(min(o.cost.cycles for o in row) for row in options)]
    low, high = -1, len(limits) - 1
    if not _fits(_total(_cheapest(options, limits[high])), device):
        raise _too_large(_cheapest(options, limits[high]), device)
    while high - low > 1:
        middle = (low + high) // 2
        fits = _fits(_total(_cheapest(options, limits[middle])), device)
        low, high = (low, middle) if fits else (middle, high)
    for limit in limits[high:]:  # FIFOs before sums are known only now
        made = with_depths(joined(graph, [o.node for o in _cheapest(options, limit)], limit))
        if _fits(total(made, device), device):
            return made
    raise _too_large(_cheapest(options, limits[-1]), device)


def total(graph: d.Graph, device: Device) -> Cost:
    """What all nodes of a folded circuit take."""
    tensors = graph.tensors
    costs = (cost(n, tensors[n.inputs[0].tensor], device) for n in graph.nodes)
    return functools.reduce(Cost.__add__, costs, Cost())


def _cheapest(options: list[list[Folding]], limit: int) -> list[Folding]:
    return [
        min((o for o in row if o.cost.cycles <= limit), key=lambda o: (o.share, o.cost.cycles))
        for row in options
    ]


def _total(chosen: list[Folding]) -> Cost:
    return functools.reduce(Cost.__add__, (o.cost for o in chosen), Cost())


def _fits(total: Cost, device: Device) -> bool:
    return total.dsp <= device.dsp and total.bram <= device.bram and total.lut <= device.lut * USABLE


def _too_large(chosen: list[Folding], device: Device) -> BudgetError:
    total = _total(chosen)
    parts = []
    for kind, words in (("dsp", "multipliers"), ("bram", "memories of 18 kbit"), ("lut", "lookup tables")):
        has = int(getattr(device, kind) * (USABLE if kind == "lut" else 1))
        if getattr(total, kind) > has:
            largest = sorted(chosen, key=lambda o: -getattr(o.cost, kind))[:3]
            named = ", ".join(f"'{_called(o.node)}' {getattr(o.cost, kind):,}" for o in largest)
            parts.append(
                f"{getattr(total, kind):,} {words} of {has:,} ({getattr(total, kind) / has:.1f} times): {named}"
            )
    return BudgetError(
        f"the smallest circuit does not fit {device.name}: " + "; ".join(parts),
        hint="take a larger device, or prune channels (--prune channels=0.3)",
        nodes=[_called(o.node) for o in chosen][:10],
    )


def _called(node: d.Node) -> str:
    return node.source[0] if node.source else node.name


def foldings(node: d.Node, x: d.Tensor, device: Device) -> Iterator[Folding]:
    """Every way to build a node that divides its channels."""
    for made in _ways(node, x):
        found = cost(made, x, device)
        share = found.dsp / device.dsp + found.bram / device.bram + found.lut / device.lut
        yield Folding(made, found, share)


def _ways(node: d.Node, x: d.Tensor) -> Iterator[d.Node]:
    channels = node.output.channels
    if isinstance(node, d.Conv | d.Dense):
        for simd in divisors(x.channels):
            for pe in divisors(channels):
                yield _with(node, simd, pe=pe, simd=simd, lanes=_requantizers(pe, products(node, x) // simd))
    elif isinstance(node, d.Depthwise | d.AveragePool | d.GlobalAverage):
        for pe in divisors(channels):
            yield _with(node, pe, pe=pe, lanes=_requantizers(pe, products(node, x)))
    else:
        for lanes in divisors(channels):
            if x.channels % lanes == 0:
                yield _with(node, lanes, lanes=lanes)


def _requantizers(pe: int, cycles: int) -> int:
    """The fewest that keep up with `pe` sums every `cycles` cycles."""
    return next(n for n in divisors(pe) if pe // n <= cycles)


def _with(node: d.Node, lanes_in: int, **changes: int) -> d.Node:
    inputs = tuple(replace(s, lanes=lanes_in) for s in node.inputs)
    return replace(node, inputs=inputs, **changes)  # type: ignore[arg-type]


def divisors(number: int) -> list[int]:
    """Ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def joined(graph: d.Graph, nodes: list[d.Node], interval: int) -> d.Graph:
    """The circuit of folded nodes, its borders as wide as what is behind them."""
    tensors = {t.name: t for t in graph.inputs} | {n.output.name: n.output for n in nodes}
    nodes = [replace(n, interval=cycles(n, tensors[n.inputs[0].tensor])) for n in nodes]
    reads = {s.tensor: s.lanes for n in reversed(nodes) for s in n.inputs}
    writes = {n.output.name: n.lanes for n in nodes}
    inputs = tuple(replace(p, lanes=reads[p.tensor]) for p in graph.input_ports)
    outputs = tuple(replace(p, lanes=writes.get(p.tensor, 1)) for p in graph.output_ports)
    return replace(graph, nodes=tuple(nodes), input_ports=inputs, output_ports=outputs, interval=interval)
