"""The statistics file: JSON whose bytes depend on the statistics alone, read with every check."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapeout.compiler.artifact import file_errors
from tapeout.compiler.calibration.histogram import BINS, LOWEST, Histogram
from tapeout.compiler.calibration.statistics import Channels, Statistics, TensorStats
from tapeout.compiler.errors import UsageError

SCHEMA = "tapeout.statistics/1"
# Larger files are no statistics.
LARGEST = 1 << 30
_WIDTHS = ("u1", "<u2", "<u4", "<u8")


def to_bytes(statistics: Statistics) -> bytes:
    """The content of a statistics file: one tensor a line, numbers as the shortest text that reads back equal,
    arrays as base64 of little-endian values."""
    head = {
        "schema": SCHEMA,
        "samples": statistics.samples,
        "data": statistics.data,
        "notes": list(statistics.notes),
        "about": statistics.about,
    }
    lines = [json.dumps(head, ensure_ascii=False, sort_keys=True)[:-1] + ', "tensors": {']
    entries = sorted(statistics.tensors.items())
    for index, (key, stats) in enumerate(entries):
        comma = "," if index + 1 < len(entries) else ""
        lines.append(f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(_entry(stats))}{comma}")
    return ("\n".join([*lines, "}}"]) + "\n").encode()


def _entry(stats: TensorStats) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "count": stats.count,
        "rank": stats.rank,
        "range": [_number(stats.min), _number(stats.max)],
        "mean": _number(stats.mean),
        "moving": [_number(stats.moving_min), _number(stats.moving_max)],
    }
    if stats.histogram is not None:
        counts = stats.histogram.counts
        used = np.flatnonzero(counts)
        first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (BINS, BINS)
        most = int(counts.max())
        width = next(w for w in _WIDTHS if most <= np.iinfo(w).max)
        entry["histogram"] = {
            "exponent": stats.histogram.exponent,
            "first": first - BINS,
            "type": width,
            "counts": _text(counts[first:last].astype(width)),
        }
    if stats.channels:
        entry["channels"] = {
            str(axis): {"min": _text(c.min), "max": _text(c.max), "mean": _text(c.mean)}
            for axis, c in sorted(stats.channels.items())
        }
    return entry


def _number(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _text(array: NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def is_statistics(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is named like a statistics file."""
    return Path(path).suffix.lower() == ".json"


def read(path: str | os.PathLike[str]) -> Statistics:
    """The statistics of a file. Raises UsageError where it is none, OutputError where it cannot be read."""
    path = Path(path)
    if not path.exists():
        raise UsageError(
            f"the statistics file '{path}' does not exist", hint="make it with 'tapeout calibrate'"
        )
    with file_errors("read", path):
        if not path.is_file():
            raise UsageError(f"the statistics '{path}' are no file")
        if path.stat().st_size > LARGEST:
            raise UsageError(f"'{path}' is too large for a statistics file")
        content = path.read_bytes()
    try:
        return parse(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise UsageError(
            f"'{path}' is no statistics file: {type(error).__name__}: {error}",
            hint="make it with 'tapeout calibrate MODEL --calibration DATA -o stats.json'",
        ) from error


def parse(content: bytes) -> Statistics:
    """The statistics in the bytes of a file. Raises ValueError, TypeError or KeyError where there are none."""
    found = json.loads(content)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"the schema is not {SCHEMA}")
    if not isinstance(found["tensors"], dict):
        raise ValueError("'tensors' is no object")
    tensors = {str(k): _stats(str(k), v) for k, v in found["tensors"].items()}
    return Statistics(
        tensors,
        samples=int(found["samples"]),
        data=str(found["data"]),
        notes=tuple(str(n) for n in found["notes"]),
        about=dict(found["about"]),
    )


def _stats(key: str, entry: Mapping[str, Any]) -> TensorStats:
    low, high = (float(v) for v in entry["range"])
    count, rank = int(entry["count"]), int(entry["rank"])
    if math.isnan(low) or math.isnan(high) or count < 0 or (count and low > high):
        raise ValueError(f"the range of '{key}' is [{low}, {high}]")
    moving = [float(v) for v in entry["moving"]]
    channels = {}
    for text, c in entry.get("channels", {}).items():
        arrays = [np.frombuffer(base64.b64decode(c[k], validate=True), "<f4") for k in ("min", "max", "mean")]
        if len({a.size for a in arrays}) != 1 or not 0 <= int(text) < rank:
            raise ValueError(f"the channels of '{key}' do not fit together")
        channels[int(text)] = Channels(*arrays)
    return TensorStats(
        count=count,
        min=low,
        max=high,
        mean=float(entry["mean"]),
        moving_min=moving[0],
        moving_max=moving[1],
        histogram=_histogram(key, entry["histogram"]) if "histogram" in entry else None,
        rank=rank,
        channels=channels,
    )


def _histogram(key: str, entry: Mapping[str, Any]) -> Histogram:
    if entry["type"] not in _WIDTHS:
        raise ValueError(f"the histogram of '{key}' has the type {entry['type']!r}")
    given = np.frombuffer(base64.b64decode(entry["counts"], validate=True), entry["type"])
    first, exponent = int(entry["first"]) + BINS, int(entry["exponent"])
    if first < 0 or first + given.size > 2 * BINS + 1 or not LOWEST <= exponent <= 128:
        raise ValueError(f"the histogram of '{key}' lies outside its bins")
    if given.size and int(given.max()) > np.iinfo(np.int64).max >> 16:
        raise ValueError(f"the histogram of '{key}' counts too much")
    counts = np.zeros(2 * BINS + 1, np.int64)
    counts[first : first + given.size] = given
    return Histogram(exponent, counts)
