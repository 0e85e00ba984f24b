"""Pruning and factorization of a model before its target's passes: what is asked, held against the model, done.

The result is a plain model without masks, which the target's road, verification and comparison take as their
source; how far it is from the model that was given is measured after each step (`compression_report.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import onnx_ir as ir

from tapeout.calibrating import Samples
from tapeout.compiler.conditions import nearest
from tapeout.compiler.errors import UsageError
from tapeout.compiler.pipeline import Pass, run
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.steps import Step, StepRule
from tapeout.compiler.target import Request, Target
from tapeout.compression_report import Comparison, figures
from tapeout.road import Prepared, Wish, prepare

if TYPE_CHECKING:
    from tapeout.compiler.calibration import Calibration

Build = Callable[[Step, ir.Model, "Calibration | None"], Pass]

CHANNELS, CONSTANT, BLOCKS = "channels", "constant-channels", "blocks"


@dataclass(frozen=True)
class Method:
    """What a method can be told: its amount as `parse` reads it (None: it has none), which things rules may state of
    single layers, and further options with what reads them; and what makes its pass."""

    parse: Callable[[str, str], object] | None
    rules: tuple[str, ...]
    build: Build
    options: Mapping[str, Callable[[str, str], object]] = field(default_factory=dict)


def methods(kind: str) -> dict[str, Method]:
    """The methods of --prune or --factorize by name."""
    if kind == "prune":
        from tapeout.passes.sparsity.solve import SOLVERS

        return {
            **{name: Method(_pattern, ("skip", "method", "amount"), _weights) for name in SOLVERS},
            CHANNELS: Method(
                _share,
                ("skip",),
                _channels,
                {"multiple": _whole, "importance": _importance, "rounds": _whole},
            ),
            CONSTANT: Method(None, ("skip",), _channels),
            BLOCKS: Method(_share, (), _blocks),
        }
    from tapeout.passes.factorization import METHODS

    options = {"multiple": _whole, "by": _criterion}
    return {name: Method(_share, ("skip", "method", "rank"), _factors, options) for name in METHODS}


def asked(prune: Sequence[str], factorize: Sequence[str], recipe: Recipe | None) -> tuple[Step, ...]:
    """The steps in order: those of `prune`, then those of `factorize`, each METHOD=AMOUNT; or the recipe's.

    Raises UsageError on a step that cannot be, and where both are given.
    """
    steps = (*(_step("prune", text) for text in prune), *(_step("factorize", text) for text in factorize))
    if recipe is not None and recipe.steps:
        if steps:
            raise UsageError(
                f"{recipe.source} has steps, and '{steps[0].text}' is given beside it",
                hint="say them in one place: steps of a recipe are carried out in its order",
            )
        steps = recipe.steps
    for step in steps:
        _check(step)
    return steps


def _step(kind: str, text: str) -> Step:
    (method, _, amount), *rest = (part.partition("=") for part in text.split(","))
    return Step(kind, method, amount, {key: value for key, _, value in rest}, source=f"--{kind} {text}")


def _check(step: Step) -> None:
    """Raises UsageError where the method is not known, or cannot be told what the step or its rules state."""
    known = methods(step.kind)
    if step.method not in known:
        _unknown(step, known)
    method = known[step.method]
    if method.parse is not None:
        if not step.amount:
            raise UsageError(
                f"{step.source}: says no amount",
                hint=f"as in --{step.kind} {step.method}=0.5, or ratio = 0.5",
            )
        method.parse(step.amount, step.source)
    elif step.amount:
        raise UsageError(f"{step.source}: {step.method} takes no amount")
    for key, value in step.options.items():
        if key not in method.options:
            hint = nearest(key, list(method.options)) if method.options else "it has none"
            raise UsageError(f"{step.source}: {step.kind} {step.method} has no option '{key}'", hint=hint)
        method.options[key](value, step.source)
    for rule in step.rules:
        _check_rule(step, rule, method, known)


def _unknown(step: Step, known: Collection[str]) -> NoReturn:
    from tapeout.passes.factorization.factorize import CIRCULANT

    if step.kind == "factorize" and "circulant" in step.method:
        raise UsageError(f"{step.source}: '{step.method}' saves no operations on any target", hint=CIRCULANT)
    raise UsageError(f"{step.source}: unknown method '{step.method}'", hint=nearest(step.method, list(known)))


def _check_rule(step: Step, rule: StepRule, method: Method, known: dict[str, Method]) -> None:
    where = f"{step.source}, rule {rule.index}"
    for key in ("skip", "method", "amount", "rank"):
        if getattr(rule, key) is not None and key not in method.rules:
            said = "ratio or pattern" if key == "amount" else key
            raise UsageError(
                f"{where}: {step.kind} {step.method} takes no {said} for single layers",
                hint=f"its rules state {', '.join(method.rules)}" if method.rules else "it has no rules",
            )
    alike = [name for name, other in known.items() if other.rules == method.rules]
    if rule.method is not None and rule.method not in alike:
        raise UsageError(f"{where}: unknown method '{rule.method}'", hint=nearest(rule.method, alike))
    if rule.amount is not None and method.parse is not None:
        method.parse(rule.amount, where)


def _pattern(text: str, where: str) -> object:
    from tapeout.passes.sparsity import Pattern

    try:
        return Pattern.parse(text)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from None


def _share(text: str, where: str) -> object:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise UsageError(
            f"{where}: {text} is no share between 0 and 1", hint="it is the share of the operations to remove"
        )
    return share


def _whole(text: str, where: str) -> object:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(
            f"{where}: '{text}', expected a whole number of at least 1", hint="as in multiple=16"
        )
    return int(text)


def _importance(text: str, where: str) -> object:
    from tapeout.passes.sparsity.importance import MEASURES, RECONSTRUCTION

    known = (RECONSTRUCTION, *MEASURES)
    if text not in known:
        raise UsageError(f"{where}: unknown importance '{text}'", hint=nearest(text, known))
    return text


def _criterion(text: str, where: str) -> object:
    from tapeout.passes.factorization.factorize import CRITERIA

    if text not in CRITERIA:
        raise UsageError(f"{where}: ranks by '{text}'", hint=nearest(text, CRITERIA))
    return text


def _weights(step: Step, model: ir.Model, data: Calibration | None) -> Pass:
    from tapeout.passes.sparsity import Pattern, Prune, Way
    from tapeout.passes.sparsity.layers import layers

    ways: dict[str, Way | None] = {}
    for layer in layers(model.graph):
        told = step.told(layer.node)
        if told.skip:
            ways[layer.name] = None
        elif told.method or told.amount:
            ways[layer.name] = Way(told.method or step.method, Pattern.parse(told.amount or step.amount))
    return Prune(step.method, Pattern.parse(step.amount), data, ways=ways)


def _channels(step: Step, model: ir.Model, data: Calibration | None) -> Pass:
    from tapeout.passes.sparsity import PruneChannels
    from tapeout.passes.sparsity.importance import RECONSTRUCTION
    from tapeout.passes.sparsity.layers import layers

    kept = [layer.name for layer in layers(model.graph) if step.told(layer.node).skip]
    share = float(step.amount) if step.amount else None
    multiple, rounds = (int(step.options.get(key, "1")) for key in ("multiple", "rounds"))
    importance = step.options.get("importance", RECONSTRUCTION)
    return PruneChannels(share, _needed(data, step), kept, multiple, importance, rounds)


def _blocks(step: Step, model: ir.Model, data: Calibration | None) -> Pass:
    from tapeout.passes.sparsity.depth import DropBlocks

    return DropBlocks(float(step.amount), _needed(data, step))


def _factors(step: Step, model: ir.Model, data: Calibration | None) -> Pass:
    from tapeout.passes.factorization import Factorize, Way
    from tapeout.passes.factorization.factorize import BUDGET
    from tapeout.passes.sparsity.layers import layers

    ways: dict[str, Way | None] = {}
    for layer in layers(model.graph):
        told = step.told(layer.node)
        if told.skip:
            ways[layer.name] = None
        elif told.method or told.rank:
            ways[layer.name] = Way(told.method or step.method, told.rank or ())
    multiple = int(step.options.get("multiple", "1"))
    by = step.options.get("by", BUDGET)
    return Factorize(step.method, float(step.amount), _needed(data, step), ways, multiple, by)


def _needed(data: Calibration | None, step: Step) -> Calibration:
    if data is None:
        raise UsageError(
            f"{step.source} looks at calibration data, and there is none", hint="give --calibration DATA"
        )
    return data


@dataclass
class Compressed:
    """The model after all steps: the file that holds it, as it is prepared from there, what each step did, and
    what later stages are compared by (None without calibration samples)."""

    path: Path
    prepared: Prepared
    told: list[dict[str, Any]]
    compare: Comparison | None

    def manifest(self, steps: Sequence[Step]) -> dict[str, Any]:
        """What the manifest says: the steps, and the patterns of zeros that weights hold, by source node."""
        from tapeout.passes.sparsity.facts import facts

        return {"compression": [step.as_json() for step in steps], "sparsity": facts(self.prepared.model)}

    def quantized(self, model: ir.Model, scheme: str) -> dict[str, Any]:
        """What the report says of `model`, the target's form of it in `scheme`."""
        return {
            "step": f"quantize {scheme}",
            **figures(model),
            **(self.compare(model) if self.compare is not None else {}),
        }


def stored_zeros(target: Target, request: Request, artifact: Path) -> dict[str, Any]:
    """How the artifact holds zeros: `option` is what packs them (None: nothing does), `packed` what it packed."""
    asked = target.packs is not None and target.packs in request.options and target.inspect is not None
    found = target.inspect(artifact)["packed"] if asked and target.inspect is not None else None
    return {"option": target.packs, "packed": found}


def compressed(prepared: Prepared, todo: Sequence[Step], samples: Samples | None, folder: Path) -> Compressed:
    """Carry out `todo` on the model, into a file in `folder`. Raises UsageError where a step cannot be carried out
    or one of its rules matches no layer."""
    from tapeout.compiler.ir.save import save
    from tapeout.passes.canonicalize import CANONICALIZE
    from tapeout.passes.fusion import FUSION
    from tapeout.passes.sparsity import Prune, facts
    from tapeout.passes.sparsity.layers import layers

    model = prepared.model
    run(model, (*CANONICALIZE, *FUSION, *CANONICALIZE))
    for step in todo:
        step.check(layer.node for layer in layers(model.graph))
    data = None if samples is None else samples.open(prepared)
    compare = None if data is None or not data.has_samples else Comparison(model, data)
    told = [{"step": "source", **figures(model)}]
    for step in todo:
        start = time.perf_counter()
        made = methods(step.kind)[step.method].build(step, model, data)
        history = run(model, (made, *CANONICALIZE))
        if isinstance(made, Prune):
            ways = {layer.name: made.ways.get(layer.name) for layer in layers(model.graph)}
            facts.state(model, {name: way.pattern if way else made.pattern for name, way in ways.items()})
        said: dict[str, Any] = {"step": step.text, "seconds": round(time.perf_counter() - start, 2)}
        said |= figures(model) | (compare(model) if compare is not None else {})
        said["left"] = [f"'{d.node}' {d.reason}" if d.node else d.reason for d in history.steps[0].declined]
        told.append(said)
    path = folder / "compressed.onnx"
    save(model, path)
    again = replace(prepare(path, Wish()), files=prepared.files, framework=prepared.framework)
    return Compressed(path, again, told, compare)
