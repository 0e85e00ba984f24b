"""`tapeout sensitivity`: what the precision of each layer costs at the outputs, as a ranked table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, log10
from typing import Any

from tapeout.calibrating import Given, PathLike, Samples
from tapeout.compiler.errors import UsageError
from tapeout.compiler.schemes import FLOAT32, STATIC
from tapeout.compiler.target import Target
from tapeout.failures import failures
from tapeout.measuring import Ground
from tapeout.road import Model, Wish, choose, prepare

# Places of the graph up to which the error is accumulated.
PLACES = 100


@dataclass(frozen=True)
class Row:
    """One layer. Errors are shares of the outputs' variance: of the layer by itself, and of it with all layers
    before it in the graph; `macs` and `bytes` (of its constants, as the scheme stores them) say what it is worth."""

    layer: str  # the source node that it computes for
    op: str
    alone: float
    accumulated: float
    macs: int
    bytes: int
    place: int  # in the graph, from 0


@dataclass(frozen=True)
class Sensitivity:
    """The rows, the layer that adds most first; `whole`: the error with all of them."""

    scheme: str
    target: str
    samples: int
    whole: float
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"rows": [asdict(r) for r in self.rows]}


def decibels(error: float) -> float:
    """An error as a signal-to-noise ratio: 0.01 is 20 dB."""
    return inf if error <= 0 else -10 * log10(error)


def sensitivity(
    model: Model,
    calibration: Given,
    target: str | Target = "tflite",
    *,
    device: str | None = None,
    quantize: str | None = None,
    preprocess: str | None = None,
    shape: Mapping[str, Sequence[int | str]] | None = None,
    layout: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
    cache: PathLike | None = None,
    jobs: int | None = None,
    notify: Callable[[str], None] | None = None,
) -> Sensitivity:
    """Measure what quantizing each layer of `model` by the scheme `quantize` (default: the first static one that
    the target has) adds to the error of the outputs, alone and with the layers before it, on calibration samples.

    Scales and codes are those of an export with `refine=off`. The other arguments are those of `export`.

    Raises TapeoutError.
    """
    from dataclasses import replace

    from tapeout.passes.quantization.precision import LayerBoard, alone, layers, weight_bytes

    with failures():
        chosen, request = choose(target, device, quantize, options)
        scheme = quantize or next((s for s in chosen.schemes if s in STATIC), None)
        if scheme in (None, FLOAT32):
            raise UsageError(
                f"--quantize {scheme or FLOAT32} rounds nothing",
                hint=f"choose of {', '.join(chosen.schemes)}",
            )
        if notify is not None:
            notify("read")
        prepared = prepare(model, Wish(shape or {}, layout or {}, tuple(outputs or ())))
        data = Samples(calibration, preprocess, cache, jobs).open(prepared)
        ground = Ground.of(prepared.model, chosen, replace(request, calibration=data))
        made = ground.apply(scheme)
        if made is None:
            raise UsageError(f"scheme '{scheme}' quantizes nothing in this model for '{chosen.name}'")
        if notify is not None:
            notify("measure")
        feeds, _ = ground.samples()
        groups = layers(ground.source)
        board = LayerBoard(made, ground.source, groups, feeds, threads=jobs or 2)
        by_itself = alone(board.error, board.changed)
        rows = []
        last, count = 0.0, len(board.changed)
        for at, i in enumerate(board.changed):
            layer = groups[i]
            # Of a long graph, evenly spread places are measured; those between have what was before them.
            if count <= PLACES or at == count - 1 or at * PLACES // count != (at - 1) * PLACES // count:
                last = board.error(board.changed[: at + 1])
            size = weight_bytes(made, layer)
            rows.append(Row(layer.name, layer.op, by_itself[i], last, layer.macs, size, at))
        board.close()
        rows.sort(key=lambda r: -r.alone)
        return Sensitivity(scheme, chosen.name, len(feeds), last, tuple(rows))
