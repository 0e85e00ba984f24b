"""The float graph of a model as a target quantizes it, what a scheme makes of it, and data to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from tapeout.compiler.errors import UnsupportedError, UsageError
from tapeout.compiler.pipeline import Pass, run
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.schemes import FLOAT32, STATIC, WEIGHTS
from tapeout.compiler.target import Request, Target
from tapeout.passes.quantization.layers import spread
from tapeout.passes.quantization.precision import Feed, affordable
from tapeout.passes.quantization.refined import OPTION as REFINE

if TYPE_CHECKING:
    from tapeout.compiler.calibration import Calibration

# How often a choice is checked as a whole.
CHECKS = 8


@dataclass
class Ground:
    """`source`: the float graph before anything is quantized. `apply` makes of a copy what a scheme asks for,
    without refining it."""

    target: Target
    request: Request
    source: ir.Model
    calibration: Calibration

    @classmethod
    def of(cls, model: ir.Model, target: Target, request: Request) -> Ground:
        """Run the target's passes on `model`, in place, up to the first that quantizes. `request.calibration`
        holds the samples; its scheme does not matter. Raises UsageError where there are no samples."""
        calibration = request.calibration
        if calibration is None or not calibration.has_samples:
            raise UsageError(
                "precision is measured on samples, and "
                + (
                    "there is no calibration data"
                    if calibration is None
                    else f"'{calibration.name}' has none"
                ),
                hint="give typical inputs with --calibration DATA",
            )
        scheme = next((s for s in target.schemes if s in STATIC), FLOAT32)
        asked = replace(request, scheme=scheme, dtypes={}, recipe=None)
        before, _ = _split(target.passes(asked))
        run(model, before)
        return cls(target, asked, model, calibration)

    def schemes(self) -> list[str]:
        """The schemes that the target offers beside float32, in its order."""
        return [s for s in self.target.schemes if s != FLOAT32]

    def apply(self, scheme: str, recipe: Recipe | None = None) -> ir.Model | None:
        """A copy of the source as `scheme` and the rules of `recipe` make it; None where the scheme can do
        nothing with it. What is left in floats may be refused by the target: that is for an export to say."""
        made = self.source.clone()
        if scheme == FLOAT32:
            return made
        data = None if scheme in WEIGHTS else self.calibration
        options = {**self.request.options, REFINE: "off"}
        request = replace(self.request, scheme=scheme, recipe=recipe, calibration=data, options=options)
        _, after = _split(self.target.passes(request))
        try:
            run(made, after)
        except UnsupportedError:
            return None
        return made

    def samples(self) -> tuple[list[Feed], list[Feed]]:
        """What to choose on and what to check the choice on, as many as the size of the model allows: every other
        of the samples each, spread over all of them."""
        found = list(self.calibration.feeds())
        return (
            spread(found[::2], affordable(self.source)),
            spread(found[1::2], affordable(self.source, CHECKS)),
        )


def _split(passes: Sequence[Pass]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """The passes before the first one that quantizes, and the others."""
    at = next((i for i, p in enumerate(passes) if _quantizes(p)), len(passes))
    return tuple(passes[:at]), tuple(passes[at:])


def _quantizes(step: Pass) -> bool:
    return getattr(step, "name", "") in ("quantize", "store-weights", "fit-weights", "half-storage")
