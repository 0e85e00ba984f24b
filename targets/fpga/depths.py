"""How deep the FIFOs before a join are: where a stream forks and its branches meet again, each branch has to hold
what the other lets through before the join can take it, or the fork stands still and with it the circuit.

Counted in pixels of the forked tensor, image after image. Of a branch, pixel k of its end *needs* the forked pixels
up to some number, and until it leaves the branch *takes* those up to a larger one: its rings and FIFOs are full then.
When one branch is that full, the other has been given as many pixels, and what they make beyond pixel k is what its
FIFO must hold. Nothing here is a matter of time, so no pattern of stalls can stop a circuit with these depths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from tapeout.targets.fpga.dialect import Array, Graph, Node, Tensor
from tapeout.targets.fpga.layout import Geometry, geometry

# Beats that a node's pipeline and the FIFO at its end hold (rtl/requantize.v, rtl/add.v).
PIPELINE = 17
SPARE = 2


def with_depths(graph: Graph) -> Graph:
    """The graph with the depths of the FIFOs before nodes of several inputs."""
    return replace(graph, nodes=tuple(_deepened(graph, node) for node in graph.nodes))


def _deepened(graph: Graph, node: Node) -> Node:
    held = [0] * len(node.inputs)
    for i, j in combinations(range(len(held)), 2):
        ends = [graph.tensors[node.inputs[k].tensor] for k in (i, j)]
        for pixels, (one, other) in _forks(graph, *ends):
            held[i] = max(held[i], _held(one, other, ends[0].pixels, pixels))
            held[j] = max(held[j], _held(other, one, ends[1].pixels, pixels))
    streams = []
    for stream, pixels in zip(node.inputs, held, strict=True):
        beats = pixels * graph.tensors[stream.tensor].channels // stream.lanes
        streams.append(replace(stream, depth=max(stream.depth, beats + SPARE) if beats else stream.depth))
    return replace(node, inputs=tuple(streams))


class _Asked(NamedTuple):
    """What each pixel of a branch's end asks of a tensor before it, in numbers of pixels."""

    needs: Array
    takes: Array


def _forks(graph: Graph, a: Tensor, b: Tensor) -> Iterator[tuple[int, tuple[_Asked, _Asked]]]:
    """Where the branches that end in `a` and `b` begin: the pixels of the forked tensor and what each branch asks of
    it. What lies before such a tensor both have in common."""
    asked: tuple[dict[str, _Asked], ...] = ({}, {})
    for end, seen in zip((a, b), asked, strict=True):
        pixel = np.arange(end.pixels) + 1
        seen[end.name] = _Asked(pixel, pixel)
    for name in reversed(graph.tensors):
        tensor, here = graph.tensors[name], tuple(seen.pop(name, None) for seen in asked)
        if here[0] is not None and here[1] is not None:
            yield tensor.pixels, (here[0], here[1])
            continue
        for seen, at in zip(asked, here, strict=True):
            node = graph.producer(name)
            if at is not None and node is not None:
                for stream in node.inputs:
                    x = graph.tensors[stream.tensor]
                    before = _before(node, x, -(-stream.depth * stream.lanes // x.channels), at)
                    known = seen.get(x.name, before)  # by two ways: the one that asks for more
                    seen[x.name] = _Asked(*map(np.maximum, known, before))


def _held(branch: _Asked, other: _Asked, pixels: int, forked: int) -> int:
    """The pixels of a branch's end that must wait while the other branch is as full as it can be."""
    images, rest = np.divmod(other.takes, forked)
    made: Array = images * pixels + np.searchsorted(branch.needs, rest, "right")
    return max(0, int((made - np.arange(len(made))).max()))


def _before(node: Node, x: Tensor, waiting: int, at: _Asked) -> _Asked:
    """What is asked of a node's input, before which `waiting` pixels can lie, for what is asked of its output."""
    needs, takes = _steps(node, x)
    ahead = -(-PIPELINE * node.lanes // node.output.channels)
    return _Asked(
        _along(needs, at.needs - 1, node.output, x),
        _along(takes, at.takes - 1 + ahead, node.output, x) + waiting,
    )


def _along(step: Callable[[Array], Array], pixel: Array, output: Tensor, x: Tensor) -> Array:
    """A step for pixels of any image: those of image i need those of image i before."""
    image, place = np.divmod(pixel, output.pixels)
    made: Array = step(place) + image * x.pixels
    return made


def _steps(node: Node, x: Tensor) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """For a pixel of a node's output: how many pixels of its input it needs, and how many the node takes before it
    leaves."""
    shape = geometry(node, x)
    if shape is not None and shape.height * shape.width == x.pixels:
        return (lambda k: np.minimum(_rows(shape, k, 0), shape.height) * shape.width), (
            lambda k: _rows(shape, k, 1) * shape.width
        )
    if shape is not None:  # the whole image is one pixel (Dense)
        return (lambda k: np.full_like(k, x.pixels)), (lambda k: np.full_like(k, shape.rows * x.pixels))
    if node.output.elements == x.elements:  # element by element, or another shape
        return (lambda k: -(-(k + 1) * node.output.channels // x.channels),) * 2
    return (lambda k: np.full_like(k, x.pixels),) * 2  # one result of all pixels (GlobalAverage)


def _rows(shape: Geometry, k: Array, full: int) -> Array:
    """The rows that output pixel k needs; with `full` those that the ring holds besides."""
    window, line = shape.window, k // shape.out[1]
    top = line * window.strides[0] - window.pads[0]
    reach = (window.kernel[0] - 1) * window.dilations[0] + 1
    made: Array = np.maximum(top, 0) + shape.rows if full else top + reach
    return made
