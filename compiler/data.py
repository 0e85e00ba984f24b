"""Inputs for a model: read from files and checked, or drawn at random within what the inputs mean."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.artifact import file_errors
from tapeout.compiler.errors import UsageError
from tapeout.compiler.feasible import fits
from tapeout.compiler.ir import graph as g

Array = np.ndarray[Any, Any]

# Sizes that free dimensions are bound to in turn, so that no two of them agree by chance.
FREE = (7, 5, 11, 13, 17, 19, 23)
# Where a model cannot run at those: multiples of 8, of 32, and equal sizes.
SIZES = ((24, 16, 40, 32, 48), (64, 32, 96, 128, 160), (8,), (32,), (64,), (224, 192), (224,))
BATCH = 2
_BATCH_NAMES = re.compile(r"^(n|b|bs|batch.*|.*batch|.*batch_?size|unk__.*|\?|)$", re.IGNORECASE)


# --- reading ----------------------------------------------------------------------------------------------


class Data:
    """Samples on disk, one array per input with samples along the first axis; opened lazily.

    `path` is an `.npz` whose arrays are named after the inputs, or a folder that holds `.npz` files (parts of
    one set, in the order of their names) or one `.npy` per input. For a model with one input, a single array
    of any name (the only one that fits) will do. The first axis of an input of fixed batch size counts
    samples in multiples of it. Integers for a float input are read as x * scale + offset where the file has
    these two numbers.
    """

    def __init__(self, path: str | os.PathLike[str], model: ir.Model) -> None:
        self.path = Path(path)
        self.files = files_of(self.path)
        self._inputs = list(model.graph.inputs)

    def samples(self, limit: int | None = None) -> Iterator[dict[str, Array]]:
        """Feeds for the model: one sample each, or as many as its fixed first dimension says; at most
        `limit`.

        Raises UsageError saying what was expected and what was found.
        """
        count = 0
        for arrays in self._parts():
            total = self._check(arrays)
            for feed in self._split(arrays, total):
                yield feed
                count += 1
                if limit is not None and count >= limit:
                    return
        if not count:
            raise UsageError(f"the data '{self.path}' holds no sample")

    def _parts(self) -> Iterator[dict[str, Array]]:
        if all(f.suffix == ".npy" for f in self.files):
            yield self._named({f.stem: _load(f) for f in self.files}, self.path)
            return
        wanted = {v.name for v in self._inputs}
        for file in self.files:
            with file_errors("read", file), _npz(file) as archive:
                # What is no input (labels, say) is not even read where all inputs are there by name.
                complete = wanted <= set(archive.files)
                names = [n for n in archive.files if not complete or n in wanted or n in _CODING]
                yield self._named({n: _member(archive, n, file) for n in names}, file)

    def _named(self, arrays: dict[str, Array], file: Path) -> dict[str, Array]:
        coding = {
            n: arrays.pop(n) for n in _CODING if n in arrays and n not in {v.name for v in self._inputs}
        }
        wanted = [v.name or "" for v in self._inputs]
        if set(wanted) <= set(arrays):
            found = {name: arrays[name] for name in wanted}
        else:
            candidates = [
                a for a in arrays.values() if len(arrays) == 1 or _could_be(a, self._inputs[0], coding)
            ]
            if len(wanted) != 1 or len(candidates) != 1:
                missing = next(n for n in wanted if n not in arrays)
                raise UsageError(
                    f"the data '{file}' has no array for input '{missing}'; found {_list(arrays)}",
                    hint=f"name the arrays after the model's inputs: {', '.join(wanted)}",
                )
            found = {wanted[0]: candidates[0]}
        return {v.name or "": _decoded(found[v.name or ""], v, coding) for v in self._inputs}

    def _check(self, arrays: dict[str, Array]) -> int:
        """Fit every array to its input; the number of samples."""
        counts: dict[str, int] = {}
        for value in self._inputs:
            name = value.name or ""
            array = arrays[name]
            if not array.ndim:
                raise UsageError(
                    f"the data '{self.path}': '{name}' is a single number, expected samples of it"
                )
            arrays[name] = fitted(array, value, f"the data '{self.path}'")
            counts[name] = len(array) // self._step(value, array)
        if len(set(counts.values())) > 1:
            found = ", ".join(f"'{k}' {n}" for k, n in counts.items())
            raise UsageError(f"the data '{self.path}' has a different number of samples per input: {found}")
        return next(iter(counts.values()), 0)

    @staticmethod
    def _step(value: ir.Value, array: Array) -> int:
        """Rows of `array` that make one sample: the input's fixed first dimension, 1 where samples have an
        axis of their own."""
        shape = g.dims(value)
        own = shape is None or array.ndim > len(shape) or not shape or not isinstance(shape[0], int)
        return 1 if own else max(1, int(shape[0]))  # type: ignore[index]

    def _split(self, arrays: Mapping[str, Array], total: int) -> Iterator[dict[str, Array]]:
        for index in range(total):
            feed: dict[str, Array] = {}
            for value in self._inputs:
                array = arrays[value.name or ""]
                step = self._step(value, array)
                part = array[index * step : (index + 1) * step]
                feed[value.name or ""] = np.ascontiguousarray(
                    part[0] if part.ndim > (g.rank(value) or 0) else part
                )
            yield feed


# Scalars that say what stored integers mean: x * scale + offset.
_CODING = ("scale", "offset")


def _decoded(array: Array, value: ir.Value, coding: Mapping[str, Array]) -> Array:
    """Integers stored for a float input, as the numbers they stand for."""
    is_float = value.dtype is not None and value.dtype.is_floating_point()
    if not coding or array.dtype.kind not in "iu" or not is_float:
        return array
    scale, offset = (float(coding.get(n, d)) for n, d in zip(_CODING, (1.0, 0.0), strict=True))
    return (array.astype(np.float32) * np.float32(scale) + np.float32(offset)).astype(value.dtype.numpy())  # type: ignore[union-attr]


def _could_be(array: Array, value: ir.Value, coding: Mapping[str, Array]) -> bool:
    """Whether `array` fits `value` in rank, sizes and type."""
    try:
        fitted(_decoded(array, value, coding), value, "")
    except (UsageError, TypeError, ValueError):
        return False
    return array.ndim > 0


def fitted(array: Array, value: ir.Value, where: str) -> Array:
    """`array` as input `value`, samples along the first axis: its dtype exactly, or converted without loss of
    meaning (float to float, integer to integer within range)."""
    name, shape = value.name, g.dims(value)
    dtype = value.dtype.numpy() if value.dtype is not None else array.dtype
    if array.dtype != dtype:
        kinds = array.dtype.kind, np.dtype(dtype).kind
        fits = kinds == ("f", "f") or (kinds[0] in "iu" and kinds[1] in "iu" and _in_range(array, dtype))
        if not fits:
            raise UsageError(
                f"{where}: input '{name}' is {np.dtype(dtype).name}, found {array.dtype.name}",
                hint="integers with a scale and an offset are converted first: x * scale + offset",
            )
        array = array.astype(dtype)
    if shape is not None:
        # With the model's own first dimension as the samples' axis, or with one axis more.
        for expected in (shape[1:], shape):
            sizes = array.shape[1:]
            if len(sizes) == len(expected) and all(
                not isinstance(d, int) or d == n for d, n in zip(expected, sizes, strict=True)
            ):
                return array
        expected_text = _shape(["samples", *shape[1:]])
        raise UsageError(
            f"{where}: input '{name}' has shape {_shape(shape)}, found {_shape(array.shape)}",
            hint=f"samples lie along the first axis: {expected_text}",
        )
    return array


def files_of(path: Path) -> list[Path]:
    """The data files at `path`: itself, or those in the folder. Raises UsageError where there is none."""
    with file_errors("read", path):
        if path.is_dir():
            entries = sorted(path.iterdir())
            files = [p for p in entries if p.suffix == ".npz"] or [p for p in entries if p.suffix == ".npy"]
            if not files:
                raise UsageError(f"the folder '{path}' holds no .npz and no .npy file")
            return files
        if not path.exists():
            raise UsageError(f"the data '{path}' does not exist")
    if path.suffix not in (".npz", ".npy"):
        raise UsageError(f"the data '{path}' is neither an .npz or .npy file nor a folder of those")
    return [path]


def _npz(file: Path) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"the data '{file}' is no .npz file of plain arrays: {error}") from error


def _member(archive: Any, name: str, file: Path) -> Array:
    try:
        return np.asarray(archive[name])
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"the array '{name}' of '{file}' cannot be read: {error}") from error


def _load(file: Path) -> Array:
    with file_errors("read", file):
        try:
            return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise UsageError(f"the data '{file}' is no .npy file of a plain array: {error}") from error


def _in_range(array: Array, dtype: Any) -> bool:
    info = np.iinfo(dtype)
    return not array.size or bool(info.min <= array.min() and array.max() <= info.max)


def _list(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"'{k}' {_shape(a.shape)} {a.dtype.name}" for k, a in arrays.items()) or "nothing"


def _shape(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


# --- drawing ----------------------------------------------------------------------------------------------


def bindings(
    model: ir.Model, batch: int = BATCH, choices: Sequence[Sequence[int]] | None = None
) -> dict[str, int]:
    """A size for every free dimension of the inputs: `batch` for those that lead, else in turn the numbers of
    the first of `choices` (default: `FREE`, then `SIZES`) at which the model's shapes fit together."""
    tried: list[dict[str, int]] = []
    for sizes in choices or (FREE, *SIZES):
        bound = _bound(model, batch, sizes)
        if bound in tried:
            break  # nothing but batches is free
        tried.append(bound)
        if fits(model, bound):
            return bound
    return tried[0]


def _bound(model: ir.Model, batch: int, sizes: Sequence[int]) -> dict[str, int]:
    bound: dict[str, int] = {}
    rest = iter(sizes)
    for value in model.graph.inputs:
        for axis, dim in enumerate(g.dims(value) or ()):
            if isinstance(dim, int) or dim in bound:
                continue
            bound[dim] = batch if axis == 0 or _BATCH_NAMES.match(dim) else next(rest, sizes[-1])
    return bound


def random_inputs(
    model: ir.Model,
    seed: int = 0,
    samples: int = 3,
    *,
    batch: int = BATCH,
    sizes: Mapping[str, int] | None = None,
) -> list[dict[str, Array]]:
    """Feeds drawn at random, the same for the same model and seed.

    Floats are normal, booleans even, integers uniform over what they index (the table of a Gather, the depth
    of a OneHot) or 0 and 1 where they are masks. Free dimensions are bound by `bindings`, `sizes` overrides.
    Raises UsageError where nothing says what an integer input means.
    """
    bound = {**bindings(model, batch), **(sizes or {})}
    feeds: list[dict[str, Array]] = []
    ranges = {v.name or "": meaning(v) for v in model.graph.inputs}
    for index in range(samples):
        feed: dict[str, Array] = {}
        for value in model.graph.inputs:
            name = value.name or ""
            shape = g.dims(value)
            if shape is None:
                raise UsageError(
                    f"input '{name}' has no known rank", hint=f"say its shape: --shape {name}=1,3,224,224"
                )
            rng = np.random.default_rng([seed, index, *name.encode()])
            feed[name] = _draw(
                rng, value, tuple(d if isinstance(d, int) else bound[d] for d in shape), ranges[name]
            )
        feeds.append(feed)
    return feeds


def _draw(
    rng: np.random.Generator, value: ir.Value, shape: tuple[int, ...], limits: tuple[int, int] | None
) -> Array:
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        raise UsageError(
            f"input '{value.name}' holds {value.dtype}: no values can be drawn", hint="give data with --data"
        )
    dtype = np.dtype(value.dtype.numpy())
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        if limits is None:
            raise UsageError(
                f"nothing in the model says which values the integer input '{value.name}' takes",
                hint="give data with --data",
            )
        return rng.integers(*limits, shape, endpoint=False).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


# Operators that hand integers on unchanged, from their first input.
_CARRY = frozenset(
    {
        "Cast",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
        "Transpose",
        "Expand",
        "Slice",
        "Split",
        "Concat",
        "Gather",
        "Tile",
    }
)
# Names by which exporters call inputs that are zeros and ones.
_MASK = re.compile(r"mask|segment|token_type|(^|_)(is|has|use)_", re.IGNORECASE)


def meaning(value: ir.Value) -> tuple[int, int] | None:
    """The half-open range of an integer input, from what reads it; None where nothing says."""
    if value.dtype is None or np.dtype(value.dtype.numpy()).kind not in "iu":
        return None
    limits = [found for found in _readers(value, set()) if found is not None]
    if limits:
        low = max(low for low, _ in limits)
        return low, max(low + 1, min(high for _, high in limits))
    if _MASK.search(value.name or ""):
        return 0, 2
    if value.dtype in (ir.DataType.UINT8, ir.DataType.INT8):
        info = np.iinfo(value.dtype.numpy())
        return int(info.min), int(info.max) + 1
    return None


def _readers(value: ir.Value, seen: set[int]) -> Iterator[tuple[int, int] | None]:
    if id(value) in seen:
        return
    seen.add(id(value))
    for node, position in value.uses():
        if node.op_type in ("Gather", "GatherElements", "GatherND") and position == 1:
            shape = g.dims(node.inputs[0])
            axis = int(g.attribute(node, "axis", 0))
            if shape and node.op_type != "GatherND" and isinstance(shape[axis], int):
                yield 0, int(shape[axis])
        elif node.op_type == "OneHot" and position == 0:
            depth = g.scalar(node.inputs[1])
            if depth is not None:
                yield 0, int(depth)
        elif node.op_type == "Cast" and g.attribute(node, "to") in (
            ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BOOL, ir.DataType.DOUBLE
        ):  # fmt: skip
            # A mask that is multiplied or added, or a picture in bytes.
            if value.dtype != ir.DataType.UINT8:
                yield 0, 2
        elif node.op_type in _CARRY and position == 0:
            yield from _readers(node.outputs[0], seen)
