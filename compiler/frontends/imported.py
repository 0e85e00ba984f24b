"""What every front end gives: an ONNX file, the modules its nodes come from, and proof that it computes the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import AccuracyError, InvalidModelError, UsageError

Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]

# max|a-b| / max|original| that the converted model may show, or four times ONNX Runtime's own spread: what an
# artifact in float32 is held to. Frameworks sum in other orders than ONNX Runtime does, which showed 3e-7 for 51
# convolutions, 7e-7 for 12 transformer layers and 4e-7 for 200 steps of an LSTM.
TOLERANCE = 1e-5
# Samples of the user's data that the original is run on.
SAMPLES = 3


@dataclass(frozen=True)
class Imported:
    """A model of another framework as the ONNX file `path` (which lives as long as the front end is open).

    `framework` names what it came from, with its version; `files` are those it was read from; `modules` tells
    which of the framework's modules or layers each ONNX node came from; `error` is the largest difference from the
    original over its largest value, None where it could not be run.
    """

    path: Path
    framework: str
    files: tuple[Path, ...]
    modules: Mapping[str, str]
    error: float | None = None

    def load(self) -> ir.Model:
        """The model in the IR; origins are names of modules."""
        from tapeout.compiler.ir import graph as g
        from tapeout.compiler.ir.load import load
        from tapeout.compiler.ir.origin import origin, set_origin

        try:
            model = load(self.path)
        except InvalidModelError as error:
            text = error.message.removeprefix(f"{self.path}: ")
            raise InvalidModelError(f"what {self.framework} was converted to is not valid: {text}") from error
        for graph in g.graphs(model):
            for node in graph:
                set_origin(node, (self._module(name) for name in origin(node)))
        return model

    def _module(self, name: str) -> str:
        # Nodes of a function that was inlined are called "call/inner".
        call = name
        found = self.modules.get(name)
        while found is None and "/" in call:
            call = call.rpartition("/")[0]
            found = self.modules.get(call)
        return found if found is not None else name


def check(
    imported: Imported,
    run: Run,
    data: Any = None,
    examples: Iterable[Mapping[str, Array]] = (),
    threads: int | None = None,
) -> float | None:
    """Run the original (`run`) and the converted model on the same inputs: the user's data, else `examples` and
    random ones. Returns the largest relative difference, None where there is nothing to run on.

    Raises AccuracyError where an output is beyond its tolerance.
    """
    from tapeout.compiler.metrics import difference, is_inexact, relative
    from tapeout.compiler.reference import Reference
    from tapeout.compiler.verification import SPREAD, number

    worst: float | None = None
    with (
        Reference(imported.path, threads=threads) as plain,
        Reference(imported.path, threads=threads, optimized=True) as fast,
    ):
        for feed in _feeds(imported, data, examples):
            expected = run(feed)
            found, quick = plain.run(feed, list(expected)), fast.run(feed, list(expected))
            for name, array in expected.items():
                d = difference(array, found[name])
                allowed = (
                    max(TOLERANCE, SPREAD * relative(found[name], quick[name])) if is_inexact(array) else 0.0
                )
                if d.shape != d.found_shape or not d.pattern or not (d.exact or d.relative <= allowed):
                    how = (
                        f"has shape {list(d.found_shape)}, expected {list(d.shape)}"
                        if d.shape != d.found_shape
                        else f"is off by {number(d.relative)} of the largest value, {number(allowed)} is allowed"
                    )
                    raise AccuracyError(
                        f"the conversion from {imported.framework} changed the model: output '{name}' {how}",
                        hint="a fault of the converter: rewrite the part of the model that it gets wrong, "
                        "or export to ONNX another way",
                    )
                worst = max(worst or 0.0, float(d.relative))
    return worst


def _feeds(
    imported: Imported, data: Any, examples: Iterable[Mapping[str, Array]]
) -> Iterable[Mapping[str, Array]]:
    from tapeout.compiler.data import Data, random_inputs

    if data is not None:
        return Data(data, imported.load()).samples(SAMPLES)
    given = list(examples)
    try:
        return itertools.chain(given, random_inputs(imported.load(), samples=2))
    except UsageError:
        # Nothing says what an integer input means: the examples have to do.
        return given
