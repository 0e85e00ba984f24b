"""Random circuits for tests: nodes of every kind with random weights, shapes and foldings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga import integer


class Maker:
    """Makes nodes and keeps what they need: the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs: list[d.Tensor] = []
        self.nodes: list[d.Node] = []

    def tensor(self, *shape: int) -> d.Tensor:
        """A tensor of a name of its own that holds any code."""
        name = f"t{len(self.inputs) + len(self.nodes)}"
        low, high = np.full(shape[2], -128), np.full(shape[2], 127)
        return d.Tensor(name, (shape[0], shape[1], shape[2]), 1.0, 0, low, high)

    def input(self, *shape: int) -> d.Tensor:
        self.inputs.append(self.tensor(*shape))
        return self.inputs[-1]

    def pick(self, number: int) -> int:
        """A random divisor."""
        return int(self.rng.choice([n for n in range(1, number + 1) if number % n == 0]))

    def int8(self, *shape: int) -> d.Array:
        return self.rng.integers(-128, 128, shape).astype(np.int8)

    def conv(
        self, x: d.Tensor, out: int, window: d.Window, lanes: tuple[int, int, int] | None = None, **form: Any
    ) -> d.Tensor:
        """A convolution; `lanes`: simd, pe and the requantizers, else random."""
        simd, pe, rate = lanes or self.folding(x.channels, out)
        y = self.tensor(*extent(x, window), out)
        parts = self._folded(x, y, simd, int(np.prod(window.kernel)) * x.channels, pe, rate, **form)
        weights = self.int8(out, *window.kernel, x.channels)
        return self._made(d.Conv(**parts, simd=simd, weights=weights, window=window))

    def folding(self, channels: int, out: int) -> tuple[int, int, int]:
        pe = self.pick(out)
        return self.pick(channels), pe, self.pick(pe)

    def depthwise(self, x: d.Tensor, window: d.Window) -> d.Tensor:
        pe = self.pick(x.channels)
        y = self.tensor(*extent(x, window), x.channels)
        parts = self._folded(x, y, pe, int(np.prod(window.kernel)), pe, self.pick(pe))
        return self._made(d.Depthwise(**parts, weights=self.int8(x.channels, *window.kernel), window=window))

    def dense(self, x: d.Tensor, out: int, **form: Any) -> d.Tensor:
        simd, pe, rate = self.folding(x.channels, out)
        parts = self._folded(x, self.tensor(1, 1, out), simd, x.elements, pe, rate, **form)
        return self._made(d.Dense(**parts, simd=simd, weights=self.int8(out, x.elements)))

    def average(self, x: d.Tensor, window: d.Window | None = None) -> d.Tensor:
        """An average pool; without window over the whole image."""
        pe = self.pick(x.channels)
        extents = (1, 1) if window is None else extent(x, window)
        terms = x.pixels if window is None else int(np.prod(window.kernel))
        y = self.tensor(*extents, x.channels)
        parts = self._folded(x, y, pe, -(-terms // 128), pe, self.pick(pe))
        return self._made(
            d.GlobalAverage(**parts) if window is None else d.AveragePool(**parts, window=window)
        )

    def max_pool(self, x: d.Tensor, window: d.Window) -> d.Tensor:
        lanes = self.pick(x.channels)
        y = self.tensor(*extent(x, window), x.channels)
        return self._made(d.MaxPool(**self._plain(lanes, y, x), lanes=lanes, window=window))

    def add(self, a: d.Tensor, b: d.Tensor, even: bool = False) -> d.Tensor:
        lanes, shift = self.pick(a.channels), 17
        left, right = (1 << 16, 1 << 15) if even else (int(m) for m in self.rng.integers(30_000, 90_000, 2))
        zero = int(self.rng.integers(-10, 10)) << shift
        return self._made(
            d.Add(
                **self._plain(lanes, self.tensor(*a.shape), a, b), lanes=lanes, multipliers=(left, right),
                offset=zero + (1 << (shift - 1)) - int(even), shift=shift, low=-100, high=127, accumulator=30,
                ties_to_even=even,
            )
        )  # fmt: skip

    def lookup(self, x: d.Tensor) -> d.Tensor:
        lanes = self.pick(x.channels)
        return self._made(
            d.Lookup(**self._plain(lanes, self.tensor(*x.shape), x), lanes=lanes, table=self.int8(256))
        )

    def graph(self, *outputs: d.Tensor) -> d.Graph:
        """The circuit with these outputs; without any, with those that nothing reads."""
        read = {s.tensor for n in self.nodes for s in n.inputs}
        ends = [t.name for t in outputs] or [n.output.name for n in self.nodes if n.output.name not in read]
        tensors = {t.name: t for t in self.inputs} | {n.output.name: n.output for n in self.nodes}
        sources, sinks = (
            tuple(d.Port(n, tensors[n].shape, n, lanes=self.pick(tensors[n].channels)) for n in names)
            for names in ([t.name for t in self.inputs], ends)
        )
        return d.Graph("random", "xc7z020", tuple(self.inputs), tuple(self.nodes), sources, sinks)

    def codes(self, samples: int) -> dict[str, d.Array]:
        """Random inputs."""
        return {t.name: self.rng.integers(-128, 128, (samples, *t.shape)) for t in self.inputs}

    def _made(self, node: d.Node) -> d.Tensor:
        self.nodes.append(node)
        return node.output

    def _plain(self, lanes: int, y: d.Tensor, *x: d.Tensor) -> dict[str, Any]:
        streams = tuple(d.Stream(t.name, lanes) for t in x)
        return {"name": f"node{len(self.nodes)}", "inputs": streams, "output": y, "source": ("source",)}

    def _folded(
        self, x: d.Tensor, y: d.Tensor, simd: int, terms: int, pe: int, rate: int, **form: Any
    ) -> dict[str, Any]:
        """A sum of `terms` products of codes, its accumulator and a requantization that uses all codes."""
        accumulator = int(terms * 2**14 + 2**17).bit_length() + 1
        spread = np.sqrt(terms) * 74**2  # of a sum of random products
        made = self.requantize(y.channels, accumulator, spread, **form)
        bias = self.rng.integers(-(2**16), 2**16, y.channels) // 8
        return {
            **self._plain(simd, y, x), "lanes": rate, "bias": bias, "requantize": made, "pe": pe,
            "accumulator": accumulator,
        }  # fmt: skip

    def requantize(
        self, channels: int, accumulator: int, spread: float, tables: bool = False, even: bool = False
    ) -> d.Requantize:
        """Scales that bring most sums within the codes; with `tables` every second channel has one."""
        shift = max(1, round(np.log2(spread)) - 4) if even else 24
        factor = 2.0**shift * 60 / spread
        multiplier = np.maximum(1, (self.rng.uniform(0.5, 1.5, channels) * factor).astype(np.int64))
        if even:
            multiplier = 2 ** self.rng.integers(0, 3, channels)
        zero = self.rng.integers(-20, 20, channels) << shift
        made = d.Requantize(multiplier, zero + (1 << (shift - 1)) - int(even), shift, -128, 127, even)
        if not tables:
            return made
        steps = np.arange(1, 256) - 128
        limit = (1 << (accumulator - 1)) - 1
        found = {}
        for c in range(0, channels, 2):
            # The line reaches a code at `line`; the table says somewhere before the line reaches the next.
            line = -((int(made.offset[c]) - (steps << shift)) // int(multiplier[c]))
            early = self.rng.integers(0, max(1, (1 << shift) // int(multiplier[c])), 255)
            found[c] = np.sort(np.clip(line - early, -limit, limit))
        return replace(made, tables=found)


def extent(x: d.Tensor, window: d.Window) -> tuple[int, int]:
    """Height and width of what a window makes of a tensor."""
    made = [
        (size + window.pads[i] + window.pads[i + 2] - (window.kernel[i] - 1) * window.dilations[i] - 1)
        // window.strides[i]
        + 1
        for i, size in enumerate(x.shape[:2])
    ]
    return made[0], made[1]


def reference(graph: d.Graph, codes: dict[str, d.Array]) -> dict[str, d.Array]:
    """What the circuit's outputs must be. Each uses many codes, so that agreement says something."""
    made = integer.run(graph, codes)
    return {p.tensor: made[p.tensor] for p in graph.output_ports}


def every_kind(seed: int) -> Maker:
    """One node of each kind and form beside one another, of random shapes and foldings."""
    m = Maker(seed)
    h, w = (int(n) for n in m.rng.integers(5, 9, 2))
    c = int(m.rng.choice([2, 4, 6]))
    n = int(m.rng.choice([3, 4, 8]))
    m.conv(m.input(h, w, c), n, d.Window((3, 3), pads=(1, 1, 1, 1), fill=5))
    m.conv(m.input(h, w, c), n, d.Window((3, 2), (2, 2), (0, 0, 1, 1), fill=-128))
    m.conv(m.input(h + 2, w + 1, c), n, d.Window((2, 3), (1, 2), (2, 1, 0, 2), (3, 2), -7), even=True)
    m.conv(m.input(h, w, c), n, d.Window((1, 1)), tables=True)
    m.conv(m.input(h, w, c), n, d.Window((1, 1), (2, 2)))
    m.depthwise(m.input(h, w, c), d.Window((3, 3), pads=(1, 1, 1, 1), fill=3))
    m.depthwise(m.input(h, w, c), d.Window((3, 2), (2, 1), (0, 1, 1, 0), fill=-3))
    m.max_pool(m.input(h, w, c), d.Window((2, 2), (2, 2), fill=-128))
    m.max_pool(m.input(h, w, c), d.Window((3, 3), (2, 1), (1, 1, 1, 1), fill=-128))
    m.average(m.input(h, w, c), d.Window((2, 3), (2, 1)))
    m.average(m.input(h, w, c))
    m.dense(m.input(2, 1, c), n)
    m.dense(m.input(1, 1, c), n, tables=True)
    m.add(m.input(h, w, c), m.input(h, w, c))
    m.add(m.input(h, w, c), m.input(h, w, c), even=True)
    m.lookup(m.input(h, w, c))
    return m


def mlp(seed: int = 0, sizes: Sequence[int] = (16, 32, 16, 5)) -> Maker:
    """A small dense network."""
    m = Maker(seed)
    x = m.input(1, 1, sizes[0])
    for size in sizes[1:]:
        x = m.dense(x, size)
    return m


def cnn(seed: int = 0) -> Maker:
    """A small convolutional network."""
    m = Maker(seed)
    x = m.conv(m.input(8, 8, 3), 8, d.Window((3, 3), pads=(1, 1, 1, 1), fill=4))
    x = m.depthwise(x, d.Window((3, 3), (2, 2), (0, 0, 1, 1), fill=-9))
    x = m.conv(x, 12, d.Window((1, 1)))
    x = m.max_pool(x, d.Window((2, 2), (2, 2), fill=-128))
    m.dense(m.average(x), 5)
    return m


def residual(seed: int = 0, size: int = 8) -> Maker:
    """Two residual blocks, the second with a convolution and a stride on its skip connection."""
    m = Maker(seed)
    same = d.Window((3, 3), pads=(1, 1, 1, 1), fill=-3)
    x = m.conv(m.input(size, size, 3), 4, same)
    x = m.add(m.conv(m.conv(x, 4, same), 4, same), x)
    long = m.conv(m.conv(x, 8, replace(same, strides=(2, 2), pads=(0, 0, 1, 1))), 8, same)
    x = m.add(long, m.conv(x, 8, d.Window((1, 1), (2, 2))))
    m.dense(m.average(x), 5)
    return m
