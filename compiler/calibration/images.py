"""Folders of images as samples: each file through a preprocessing that the user states."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tapeout.compiler.artifact import file_errors
from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g

Array = NDArray[Any]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
EXAMPLE = '--preprocess "rgb resize=224,224 mean=127.5 scale=0.0078431 layout=NHWC"'
COLORS = ("rgb", "bgr", "gray")
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box")
LAYOUTS = ("NHWC", "NCHW")
# Larger pictures are refused before they are decoded.
MOST_PIXELS = 100_000_000
# Samples of a folder are kept in memory for the next pass up to so many bytes.
KEPT = 256 << 20


def files(path: Path) -> list[Path]:
    """The image files of a folder and those below it, by name; empty where it is no such folder."""
    if not path.is_dir():
        return []
    with file_errors("read", path):
        return sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


@dataclass(frozen=True)
class Preprocess:
    """From a picture to the array of one sample, in this order:

    `color` (rgb, bgr, gray); `short` resizes the shorter side to so many pixels; `crop` cuts (height, width)
    out of the centre; `resize` to (height, width), or `letterbox` to it with the sides' ratio kept and `pad`
    around (right and below); then (x - mean) * scale / std, each one number or one per channel, on pixels from
    0 to 255; then `layout`.
    """

    color: str = "rgb"
    short: int | None = None
    crop: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    letterbox: tuple[int, int] | None = None
    pad: int = 114
    filter: str = "bilinear"
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str | None = None
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str | None, folder: Path) -> Preprocess:
        """The preprocessing written as words and KEY=VALUE. Raises UsageError that names what is not known."""
        if text is None:
            raise UsageError(
                f"'{folder}' is a folder of images, and nothing says how they become inputs",
                hint=f"state it: {EXAMPLE}",
            )
        found: dict[str, Any] = {}
        for word in text.split():
            key, equals, value = word.partition("=")
            if not equals and key.lower() in COLORS:
                key, value = "color", key.lower()
            elif key not in _READERS:
                import difflib

                known = [*_READERS, *COLORS]
                near = difflib.get_close_matches(key, known, 1)
                raise UsageError(
                    f"--preprocess does not know '{key}'" + (f"; did you mean '{near[0]}'?" if near else ""),
                    hint=f"it knows {', '.join(known)}; for example {EXAMPLE}",
                )
            if key in found:
                raise UsageError(f"--preprocess says '{key}' twice")
            found[key] = value if key == "color" else _READERS[key](key, value)
        if "resize" in found and "letterbox" in found:
            raise UsageError("--preprocess: 'resize' and 'letterbox' exclude each other")
        return cls(**found, text=" ".join(text.split()))

    def apply(self, content: bytes, where: str) -> Array:
        """The float32 array [height, width, channels] of the picture in `content`.

        Raises UsageError where it is none.
        """
        Image = pillow()
        try:
            with Image.open(io.BytesIO(content)) as opened:
                if opened.size[0] * opened.size[1] > MOST_PIXELS:
                    raise UsageError(
                        f"the image '{where}' has {opened.size[0]} x {opened.size[1]} pixels: too many"
                    )
                picture = opened.convert("L" if self.color == "gray" else "RGB")
        except UsageError:
            raise
        except Exception as error:  # decoders raise whatever they like on damaged files
            raise UsageError(
                f"the image '{where}' cannot be read: {type(error).__name__}: {error}"
            ) from error
        picture = self._shaped(picture, getattr(Image.Resampling, self.filter.upper()))
        array = np.asarray(picture, np.float32)
        array = array[:, :, None] if array.ndim == 2 else array
        if self.color == "bgr":
            array = array[:, :, ::-1]
        if self.letterbox is not None:
            array = self._padded(array, self.letterbox)
        mean, scale, std = (np.asarray(v, np.float32) for v in (self.mean, self.scale, self.std))
        for name, values in (("mean", self.mean), ("scale", self.scale), ("std", self.std)):
            if len(values) not in (1, array.shape[2]):
                raise UsageError(
                    f"--preprocess {name} has {len(values)} numbers, the pictures have {array.shape[2]} channels"
                )
        return np.asarray((array - mean) * scale / std, np.float32)

    def _shaped(self, picture: Any, resampling: Any) -> Any:
        width, height = picture.size
        if self.short is not None:
            ratio = self.short / min(width, height)
            picture = picture.resize(
                (max(self.short, round(width * ratio)), max(self.short, round(height * ratio))), resampling
            )
            width, height = picture.size
        if self.crop is not None:
            left, top = (width - self.crop[1]) // 2, (height - self.crop[0]) // 2
            picture = picture.crop((left, top, left + self.crop[1], top + self.crop[0]))
        if self.resize is not None:
            picture = picture.resize(self.resize[::-1], resampling)
        if self.letterbox is not None:
            width, height = picture.size
            ratio = min(self.letterbox[0] / height, self.letterbox[1] / width)
            picture = picture.resize((max(1, int(width * ratio)), max(1, int(height * ratio))), resampling)
        return picture

    def _padded(self, array: Array, size: tuple[int, int]) -> Array:
        whole = np.full((*size, array.shape[2]), self.pad, np.float32)
        whole[: array.shape[0], : array.shape[1]] = array
        return whole


def _sizes(key: str, text: str) -> tuple[int, int]:
    try:
        sizes = [int(t) for t in text.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        sizes *= 2
    if len(sizes) != 2 or any(not 0 < s <= 16384 for s in sizes):
        raise UsageError(f"--preprocess {key}={text}: expected height,width such as {key}=224,224")
    return sizes[0], sizes[1]


def _numbers(key: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(t) for t in text.split(","))
    except ValueError:
        values = ()
    if not values or not np.isfinite(values).all() or (key == "std" and 0.0 in values):
        raise UsageError(f"--preprocess {key}={text}: expected numbers such as {key}=123.7,116.3,103.5")
    return values


def _whole(key: str, text: str) -> int:
    if not text.isdecimal() or (key == "short" and not 0 < int(text) <= 16384) or int(text) > 16384:
        raise UsageError(f"--preprocess {key}={text}: expected a whole number")
    return int(text)


def _choice(choices: Sequence[str]) -> Any:
    def read(key: str, text: str) -> str:
        found = next((c for c in choices if c.lower() == text.lower()), None)
        if found is None:
            raise UsageError(f"--preprocess {key}={text}: expected one of {', '.join(choices)}")
        return found

    return read


_READERS: dict[str, Any] = {
    "color": _choice(COLORS),
    "short": _whole,
    "crop": _sizes,
    "resize": _sizes,
    "letterbox": _sizes,
    "pad": _whole,
    "filter": _choice(FILTERS),
    "mean": _numbers,
    "scale": _numbers,
    "std": _numbers,
    "layout": _choice(LAYOUTS),
}


@functools.cache
def pillow() -> Any:
    """PIL.Image; raises UsageError where it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            "reading images needs Pillow, which is not installed", hint="pip install 'tapeout[images]'"
        ) from error
    return Image


class Folder:
    """The pictures of a folder as feeds of a model with one input for them; the first feeds stay in memory, and
    in `cache` by content where there is one."""

    def __init__(
        self, pictures: Sequence[Path], preprocess: Preprocess, model: ir.Model, cache: Path | None
    ) -> None:
        self.pictures = list(pictures)
        self.preprocess = preprocess
        self.cache = cache
        self._kept: list[Array] = []
        values = list(model.graph.inputs)
        if len(values) != 1:
            names = ", ".join(v.name or "" for v in values)
            raise UsageError(
                f"the model has {len(values)} inputs ({names}), a folder of images is data for one",
                hint="give an .npz with an array for each input",
            )
        self.value = values[0]
        pillow()

    def feeds(self) -> Iterator[dict[str, Array]]:
        """One feed for each picture, in the order of their names."""
        size = sum(a.nbytes for a in self._kept)
        for index, path in enumerate(self.pictures):
            if index < len(self._kept):
                array = self._kept[index]
            else:
                array = self._fitted(self._read(path), path)
                if index == len(self._kept) and size + array.nbytes <= KEPT:
                    self._kept.append(array)
                    size += array.nbytes
            yield {self.value.name or "": array}

    def _read(self, path: Path) -> Array:
        with file_errors("read", path):
            content = path.read_bytes()
        if self.cache is None:
            return self.preprocess.apply(content, str(path))
        from tapeout.compiler.calibration import cache

        place = cache.image_place(self.cache, content, repr(self.preprocess))
        if place.is_file():
            try:
                return np.asarray(np.load(place, allow_pickle=False))
            except (ValueError, EOFError, OSError):
                pass  # a damaged entry is made again
        array = self.preprocess.apply(content, str(path))
        buffer = io.BytesIO()
        np.save(buffer, array)
        cache.put(place, buffer.getvalue())
        return array

    def _fitted(self, array: Array, path: Path) -> Array:
        """`array` [height, width, channels] as the input wants it: its axes, its type, a batch axis of 1."""
        value, layout = self.value, self.preprocess.layout
        shape = g.dims(value)
        name = value.name
        if shape is None or len(shape) not in (3, 4):
            found = "an unknown shape" if shape is None else f"the shape {list(shape)}"
            raise UsageError(f"the input '{name}' has {found}: images need three or four axes")
        if layout is None:
            fits = {
                "NHWC": _fits(array.shape, shape[-3:]),
                "NCHW": _fits((array.shape[2], *array.shape[:2]), shape[-3:]),
            }
            if sum(fits.values()) > 1:
                raise UsageError(
                    f"the input '{name}' takes both orders of axes", hint="say layout=NHWC or layout=NCHW"
                )
            layout = next((k for k, v in fits.items() if v), "NCHW")
        if layout == "NCHW":
            array = array.transpose(2, 0, 1)
        if not _fits(array.shape, shape[-3:]) or (
            len(shape) == 4 and isinstance(shape[0], int) and shape[0] != 1
        ):
            whole = [1, *array.shape] if len(shape) == 4 else list(array.shape)
            raise UsageError(
                f"input '{name}' has shape {list(shape)}, the preprocessed image '{path}' has {whole}",
                hint=f"state the size and the order of axes: {EXAMPLE}",
            )
        array = array[None] if len(shape) == 4 else array
        return self._typed(np.ascontiguousarray(array))

    def _typed(self, array: Array) -> Array:
        if self.value.dtype is None or self.value.dtype == ir.DataType.FLOAT:
            return array
        dtype = np.dtype(self.value.dtype.numpy())
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            if (array != np.rint(array)).any() or array.min() < info.min or array.max() > info.max:
                raise UsageError(
                    f"input '{self.value.name}' is {dtype.name}: the preprocessed pixels are no such integers",
                    hint="leave out mean, scale and std",
                )
        elif dtype.kind == "b":
            raise UsageError(f"input '{self.value.name}' is boolean: images are no data for it")
        return array.astype(dtype)


def _fits(found: Sequence[int], expected: Sequence[int | str]) -> bool:
    return all(not isinstance(e, int) or e == f for f, e in zip(found, expected, strict=True))
