"""Calibration data: where samples come from, whether they are fit for it, and what was measured on them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tapeout.compiler import data as inputs
from tapeout.compiler.calibration import store
from tapeout.compiler.calibration.statistics import Statistics
from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g

Array = NDArray[Any]
Feed = dict[str, Array]
Given: TypeAlias = "Mapping[str, Any] | Any"
Source: TypeAlias = "str | os.PathLike[str] | Callable[[], Iterable[Given]] | Statistics"

RANDOM = "random"
# Samples that are drawn for `random`.
DRAWN = 32
# Fewer samples say too little about ranges to be trusted without a word.
FEWEST = 4


class Calibration:
    """The data to calibrate on, for one model.

    `source` is a path (an `.npz`, a folder of `.npz` or `.npy` files as `data.Data` takes them, a folder of
    images with `preprocess`, a statistics file `.json`), "random", a callable that gives an iterable of
    samples afresh each time it is called (each a mapping from input names to arrays, or an array where the
    model has one input), or `Statistics`. `model` is the graph whose inputs are fed; `jobs` bounds threads.

    Nothing is read before it is asked for, but the source is looked at: raises UsageError where it is none.
    """

    def __init__(
        self,
        source: Source,
        model: ir.Model,
        *,
        preprocess: str | None = None,
        jobs: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        limit: int | None = None,
    ) -> None:
        self.model = interface(model)  # passes may give the model's inputs other types
        self.jobs = jobs
        self.cache = Path(cache) if cache is not None else None
        self.collected: Statistics | None = None
        self._limit = limit
        self._loaded: Statistics | None = None
        self._open: Callable[[], Iterable[Feed]] | None = None
        self._checked = False
        self.samples = 0
        self.stand_in = (
            False  # for data that nobody has given: good for ranges, not for choices by measurement
        )
        self.notes: tuple[str, ...] = ()
        self.name = _name(source)
        self.files: list[Path] = []
        if isinstance(source, Statistics):
            self._loaded = source
        elif callable(source):
            self._open = functools.partial(_called, source, self.model)
        elif source == RANDOM:
            self._open = functools.cache(
                functools.partial(inputs.random_inputs, model, samples=DRAWN, batch=1)
            )
        elif store.is_statistics(cast(Any, source)):
            self._loaded = store.read(cast(Any, source))
            self.files = [Path(cast(Any, source))]
        else:
            self._open_path(Path(cast(Any, source)), preprocess)
        if preprocess is not None and not self._images:
            raise UsageError(
                f"--preprocess is for a folder of images, and '{self.name}' is none",
                hint="leave it out: arrays are taken as they are",
            )

    _images = False

    def _open_path(self, path: Path, preprocess: str | None) -> None:
        from tapeout.compiler.calibration import images

        pictures = images.files(path)
        if pictures:
            self._images = True
            recipe = images.Preprocess.parse(preprocess, path)
            self._open = images.Folder(pictures, recipe, self.model, self.cache).feeds
            self.files = pictures
        else:
            found = inputs.Data(path, self.model)
            self._open = found.samples
            self.files = list(found.files)

    # --- samples ----------------------------------------------------------------------------------------------

    @property
    def has_samples(self) -> bool:
        """False for a statistics file: algorithms that need whole tensors cannot run on it."""
        return self._open is not None

    def feeds(self) -> Iterator[Feed]:
        """One sample at a time, with the first axis as the model wants it (1 where it is free); always the same,
        and checked once.

        Raises UsageError where the source has statistics only, or where the data is not fit.
        """
        if self._open is None:
            raise UsageError(
                f"'{self.name}' holds statistics, and this needs the samples themselves",
                hint="give the data with --calibration DATA",
            )
        if not self._checked:
            self._check()
        return self._feeds()

    def _feeds(self) -> Iterator[Feed]:
        assert self._open is not None
        count = 0
        for given in self._open():
            for feed in _single(given, self.model):
                yield feed
                count += 1
                if self._limit is not None and count >= self._limit:
                    return

    def _check(self) -> None:
        """One pass over the data: shapes and types (by the reader), NaN, infinity, how many, and whether they
        differ; the digest of it all."""
        digest = hashlib.sha256()
        first: Feed | None = None
        varies: set[str] = set()
        constant: dict[str, Any] = {}
        count = 0
        for index, feed in enumerate(self._feeds()):
            for name, array in sorted(feed.items()):
                _finite(array, name, index, self.name)
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
                if name in varies or not array.size:
                    continue
                value = constant.setdefault(name, array.reshape(-1)[0])
                resized = first is not None and array.shape != first[name].shape
                if resized or (array != value).any():
                    varies.add(name)
            first = feed if first is None else first
            count += _rows(feed, self.model)
        if first is None:
            raise UsageError(f"the calibration data '{self.name}' holds no sample")
        if self.model.graph.inputs and not varies:
            told = (
                ", ".join(f"'{n}' is {constant[n]} everywhere" for n in sorted(constant))
                or "nothing is in it"
            )
            raise UsageError(
                f"the calibration data '{self.name}' is constant: {told}",
                hint="ranges come from real inputs; --calibration random draws some by name",
            )
        if count < FEWEST:
            raise UsageError(
                f"the calibration data '{self.name}' holds {count} sample{'s' * (count > 1)}, at least {FEWEST} "
                "are needed",
                hint="32 to 512 typical inputs are usual",
            )
        floats = {
            v.name for v in self.model.graph.inputs if v.dtype is not None and v.dtype.is_floating_point()
        }
        self.notes = tuple(
            f"the input '{n}' is {constant[n]} in every calibration sample"
            for n in sorted(constant)
            if n not in varies and n in floats
        )
        self.samples = count
        self._digest = digest.hexdigest()
        self._checked = True

    @property
    def digest(self) -> str:
        """sha256 over names, types, shapes and values of all samples (of a statistics file: of its data)."""
        if self._loaded is not None:
            return self._loaded.data
        if not self._checked:
            self._check()
        return self._digest

    # --- statistics -------------------------------------------------------------------------------------------

    def collect(self, model: ir.Model) -> Statistics:
        """As `statistics`, and kept in `collected` for the passes that follow."""
        self.collected = self.statistics(model)
        return self.collected

    def statistics(self, model: ir.Model) -> Statistics:
        """Statistics of the tensors of the float graph `model`, whose inputs are those of the model given first.

        Raises UsageError where the data is not fit, a tensor is NaN, or a statistics file lacks a tensor.
        """
        from tapeout.compiler.calibration import collect

        if self._loaded is not None:
            return collect.bound(model, self._loaded)
        if not self._checked:
            self._check()
        place = self._place(model)
        if place is not None and place.is_file():
            try:
                return collect.bound(model, store.read(place))
            except UsageError:
                pass  # a damaged entry is made again
        found = collect.collect(model, self._feeds, self.jobs)
        found.samples, found.data, found.notes = self.samples, self._digest, self.notes
        if place is not None:
            from tapeout.compiler.calibration import cache

            cache.put(place, store.to_bytes(portable(found, model)))
        return found

    def _place(self, model: ir.Model) -> Path | None:
        if self.cache is None:
            return None
        from tapeout.compiler.calibration import cache

        return cache.statistics_place(self.cache, model, self._digest)


def interface(model: ir.Model) -> ir.Model:
    """A model that has the inputs of `model` as they are now, and nothing else."""
    values = []
    for value in model.graph.inputs:
        kind = value.type
        if isinstance(kind, ir.TensorType):
            kind = ir.TensorType(kind.dtype)
        values.append(ir.Value(name=value.name, type=kind, shape=value.shape))
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 25}), ir_version=10)


def portable(statistics: Statistics, model: ir.Model) -> Statistics:
    """`statistics` of `model` as they go into a file: made tensors under keys that say what they compute."""
    from dataclasses import replace

    from tapeout.compiler.calibration.tensors import keys, wanted

    what = wanted(model)
    names = keys(model, what.values)
    tensors = {names[n]: s for n in what.axes if (s := statistics[n]) is not None}
    return replace(statistics, tensors=tensors, keys={}, stand_in={})


# --- reading what is given ------------------------------------------------------------------------------------


def _name(source: Any) -> str:
    if isinstance(source, Statistics):
        return "statistics"
    if callable(source):
        return str(getattr(source, "__name__", type(source).__name__))
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    raise UsageError(
        f"the calibration is a {type(source).__name__}",
        hint="expected a path, 'random', Statistics, or a callable that gives samples",
    )


def _called(source: Callable[[], Iterable[Given]], model: ir.Model) -> Iterator[Feed]:
    """Samples of a callable, each checked against the model's inputs."""
    wanted = {v.name or "": v for v in model.graph.inputs}
    where = f"the calibration callable '{_name(source)}'"
    given = source()
    if not isinstance(given, Iterable):
        raise UsageError(f"{where} gives a {type(given).__name__}, expected an iterable of samples")
    for index, sample in enumerate(given):
        if not isinstance(sample, Mapping):
            if len(wanted) != 1:
                raise UsageError(
                    f"{where}: sample {index} is a {type(sample).__name__}, expected a mapping from input names to "
                    f"arrays: {', '.join(wanted)}"
                )
            sample = {next(iter(wanted)): sample}
        missing = [n for n in wanted if n not in sample]
        unknown = [n for n in sample if n not in wanted]
        if missing or unknown:
            told = f"lacks the input '{missing[0]}'" if missing else f"has '{unknown[0]}', which is no input"
            raise UsageError(f"{where}: sample {index} {told}", hint=f"the inputs are {', '.join(wanted)}")
        yield {n: _exact(np.asarray(sample[n]), v, f"{where}: sample {index}") for n, v in wanted.items()}


def _exact(array: Array, value: ir.Value, where: str) -> Array:
    """`array` as one feed of `value`; the batch axis may be left out where it is 1 or free."""
    shape = g.dims(value)
    if shape is not None and array.ndim == len(shape) - 1 and shape[0] in (1, *_free(shape)):
        array = array[None]
    if shape is None or array.ndim == len(shape):
        fixed = shape[0] if shape else None
        if isinstance(fixed, int) and array.shape[0] != fixed:
            raise UsageError(
                f"{where}: input '{value.name}' has shape {list(shape or ())}, found {list(array.shape)}"
            )
        if not shape:
            return array.astype(value.dtype.numpy()) if value.dtype is not None else array
        return inputs.fitted(array, value, where)
    raise UsageError(f"{where}: input '{value.name}' has shape {list(shape)}, found {list(array.shape)}")


def _free(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return () if isinstance(shape[0], int) else (shape[0],)


def _single(feed: Feed, model: ir.Model) -> Iterator[Feed]:
    """The samples of a feed, one each, where one free dimension leads all inputs and nothing else: how samples
    are grouped then makes no difference."""
    leading = {s[0] for v in model.graph.inputs if (s := g.dims(v))}
    batched = {v.name or "" for v in model.graph.inputs if g.dims(v)}
    sizes = {len(feed[name]) for name in batched}
    name = next(iter(leading), None)
    elsewhere = any(name in s[1:] for v in model.graph.inputs if (s := g.dims(v)))
    if len(leading) != 1 or isinstance(name, int) or elsewhere or len(sizes) != 1 or sizes <= {0, 1}:
        yield feed
        return
    for i in range(next(iter(sizes))):
        yield {name: array[i : i + 1] if name in batched else array for name, array in feed.items()}


def _rows(feed: Feed, model: ir.Model) -> int:
    """How many samples a feed holds: what its first input's first axis counts, where that is a batch."""
    for value in model.graph.inputs:
        shape = g.dims(value)
        if shape and len(shape) > 1:
            return max(1, len(feed[value.name or ""]))
        return 1
    return 1


def _finite(array: Array, name: str, index: int, source: str) -> None:
    if array.dtype.kind not in "fc" and array.dtype.name not in ("bfloat16",):
        return
    # A sum is NaN or infinite where an element is (or where it overflows: then look closer).
    with np.errstate(all="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)) or np.isfinite(array).all():
            return
    what = "NaN" if np.isnan(array).any() else "infinite values"
    raise UsageError(
        f"the calibration data '{source}': sample {index} of input '{name}' holds {what}",
        hint="leave the sample out, or repair what wrote it",
    )
