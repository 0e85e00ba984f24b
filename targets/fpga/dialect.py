"""The circuit's graph: what flows on its streams, what its nodes compute on integers, and how each is folded.

Every tensor is a stream of one inference after another, in the order height, width, channels (HWC, row-major): what
ONNX holds as NCHW is fed channels last, vectors have height and width 1. A *beat* carries `lanes` consecutive
elements, element i in bits [i * bits, (i + 1) * bits); `lanes` divides the channels, so no beat crosses a pixel.

All arithmetic is on *codes*, the integers on the streams, zero points included: with real = scale * (code - zero),
a sum over weights w and inputs x is

    sum w * (x - zero) + b  =  sum w * x + bias,     bias = b - zero * sum w

so that nothing subtracts a zero point in the circuit, and padding carries the code of the real number 0. Every
accumulator ends in a `Requantize`. `integer.py` is the meaning of each node, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Tensor:
    """What one stream carries in an inference.

    name: the IR's name of the value, unique in the graph.
    shape: height, width, channels.
    scale, zero_point: real = scale * (code - zero_point); one of each for the tensor.
    low, high: the range that is proven for each channel, int64 [channels], in codes; within the bits.
    """

    name: str
    shape: tuple[int, int, int]
    scale: float
    zero_point: int
    low: Array
    high: Array
    bits: int = 8
    signed: bool = True

    @property
    def channels(self) -> int:
        return self.shape[2]

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def elements(self) -> int:
        return self.pixels * self.channels


@dataclass(frozen=True)
class Stream:
    """One reader's edge: the tensor's name, the elements per beat that the reader takes, and how many such beats
    the FIFO in front of it holds (0: none). Where `lanes` differ from those that the producer writes there is a
    width converter, on the reader's side of a fork; where a tensor has several readers there is a fork."""

    tensor: str
    lanes: int = 1
    depth: int = 2


@dataclass(frozen=True, eq=False)
class Requantize:
    """The code of an accumulator in channel c, exact for every value that the accumulator can have:

        guess = (accumulator * multiplier[c] + offset[c]) >> shift          arithmetic, toward minus infinity
        code  = clip(guess, low, high)

    The offset holds rounding and the zero point of the result; `low` and `high` hold its bits and a fused clip.
    With `ties_to_even` (power-of-two scales: every multiplier is a power of two, so none is built) 1 is added before
    the shift where bit `shift` of `accumulator * multiplier[c]` is set, and the offset holds half - 1 besides the
    zero point: exact ties go to the even quotient. Then shift >= 1.

    A channel in `tables` has no exact line. There guess <= code <= guess + 1 after the clip to [low, high], and

        code = guess + (guess < high and accumulator >= table[guess - low])

    table: int64 [high - low], ascending: the smallest accumulator whose code is above low + i. The accumulator's
    bits hold every entry: one that is never reached is the largest of its bits.

    multiplier, offset: int64 [channels], multiplier >= 0; shift: one for all channels.
    scale: float32 [channels], what the integers stand for: codes are scale * accumulator + zero point, clipped.
    """

    multiplier: Array
    offset: Array
    shift: int
    low: int
    high: int
    ties_to_even: bool = False
    tables: Mapping[int, Array] = field(default_factory=dict)
    scale: Array = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """What every node has. `name` is unique; `source` names the source's nodes that it computes for.

    lanes: elements per beat of the output, which the tensor `output` describes.
    interval: cycles between the starts of two inferences, once running, were the node alone (predicted).
    latency: cycles from the first input beat to the first output beat, fed without pause (predicted).
    """

    name: str
    inputs: tuple[Stream, ...]
    output: Tensor
    source: tuple[str, ...] = ()
    lanes: int = 1
    interval: int = 0
    latency: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Folded(Node):
    """A sum of products. `accumulator` signed bits hold every final sum, bias included; partial sums may wrap around.

    bias: int64 [out channels], with the zero point of the input folded in.
    pe: outputs computed at once; divides the out channels. simd: products of each at once.
    requantize: `lanes` of them work at once, and `lanes` divides `pe`.
    """

    bias: Array
    requantize: Requantize
    accumulator: int
    pe: int = 1
    simd: int = 1


@dataclass(frozen=True)
class Window:
    """A sliding window: rows then columns. pads: top, left, bottom, right; `fill` is the code in the padding."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    fill: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Folded):
    """A convolution over all channels: sliding window and matrix-vector unit.

    weights: int8 [out channels, kernel rows, kernel columns, in channels]. The unit takes a window in that order,
    `simd` consecutive elements a cycle; `simd` divides the in channels and equals the lanes of the input. Pixels are
    computed one after another, for each pixel out channels in groups of `pe` (channels g * pe .. g * pe + pe - 1),
    for each group kernel elements / simd cycles. A 1x1 convolution needs no lines, only a pixel's channels.
    """

    weights: Array
    window: Window


@dataclass(frozen=True, eq=False, kw_only=True)
class Depthwise(Folded):
    """A convolution of each channel with a kernel of its own.

    weights: int8 [channels, kernel rows, kernel columns]. `pe` channels at once, which is also the input's lanes;
    `simd` is 1: the kernel's elements come one after another, row-major.
    """

    weights: Array
    window: Window


@dataclass(frozen=True, eq=False, kw_only=True)
class Dense(Folded):
    """A product with a matrix.

    weights: int8 [out channels, inputs], the inputs in the stream's order (height, width, channels). `simd` divides
    the channels of the input and equals its lanes.
    """

    weights: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Node):
    """The largest code in each window; `lanes` channels at once on both sides. The fill is the lowest code."""

    window: Window


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(Folded):
    """The sum of the codes in each window plus bias, requantized; the divisor is in the multiplier, padding counts.
    `pe` channels at once, which is also the input's lanes; `simd` is 1."""

    window: Window


@dataclass(frozen=True, eq=False, kw_only=True)
class GlobalAverage(Folded):
    """The sum of all pixels' codes in each channel plus bias, requantized: an accumulator for each channel. `pe`
    channels at once, which is also the input's lanes; `simd` is 1."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """The sum of two tensors of one shape, each with a scale of its own; `lanes` of both inputs and the output:

        code = clip((a * multipliers[0] + b * multipliers[1] + offset) >> shift, low, high)

    in `accumulator` signed bits. Multipliers are positive, the zero points are in the offset. With `ties_to_even`
    (scales that are powers of two) 1 is added before the shift where bit `shift` of the sum without rounding and
    without the zero point of the result is set: offset = start + (zero point << shift) + 2**(shift - 1) - 1, the
    bit that of a * multipliers[0] + b * multipliers[1] + start.

    differs: pairs of codes, of those that the inputs can have, whose float32 sum rounds to a neighbouring code; 0
    wherever integers meet float32 on all pairs.
    """

    multipliers: tuple[int, int]
    offset: int
    shift: int
    low: int
    high: int
    accumulator: int
    start: int = 0
    ties_to_even: bool = False
    differs: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Lookup(Node):
    """An element's code by table: int8 [256], entry i for the input code i - 128. `lanes` at once on both sides."""

    table: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Node):
    """The same codes in the same order under another shape: wires. `lanes` divide the channels of both."""


@dataclass(frozen=True, eq=False)
class Port:
    """A border of the circuit, by the source's name, shape and type.

    order: int64 [elements], where each element of the flattened array lies in the stream of tensor `tensor`; None
    where they are in the same order.
    real: the source's array is float32; the host quantizes an input (x / scale in float32, to nearest, ties to even)
    and scales an output by the tensor's scale and zero point.
    lanes: elements per beat at the border. An output's beats pass a FIFO of `depth` like any reader's.
    """

    name: str
    shape: tuple[int, ...]
    tensor: str
    order: Array | None = None
    real: bool = False
    lanes: int = 1
    depth: int = 2


@dataclass(frozen=True, eq=False)
class Graph:
    """A circuit: nodes in an order in which each comes after what it reads; no tensor is without reader.

    inputs: the tensors of input ports, which no node makes, by name; `interval` is the slowest node's, `latency` an
    estimate from the first input beat to the last output beat of one inference (predicted, cycles).
    """

    name: str
    device: str
    inputs: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    input_ports: tuple[Port, ...]
    output_ports: tuple[Port, ...]
    interval: int = 0
    latency: int = 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {t.name: t for t in self.inputs} | {n.output.name: n.output for n in self.nodes}

    def producer(self, tensor: str) -> Node | None:
        """The node that makes a tensor; None for an input."""
        return next((n for n in self.nodes if n.output.name == tensor), None)

    def readers(self, tensor: str) -> list[tuple[Node, Stream]]:
        """The nodes that read a tensor, each with its edge; a node that reads it twice is there twice."""
        return [(n, s) for n in self.nodes for s in n.inputs if s.tensor == tensor]
