"""`--quantize auto`: the precision of each layer, by a knapsack over measured errors against size or latency.

1. every scheme of the target is carried out on the float graph; what each layer adds by itself to the error of the
   outputs is measured on every other calibration sample (`passes/quantization/precision.py`)
2. a layer costs the bytes of its constants, or its share (by multiply-accumulates) of the time that the model takes
   on the target's runtime when exported in the scheme as a whole
3. the knapsack (`passes/quantization/knapsack.py`) finds the cheapest choice whose errors add up to the bound
4. the choice is carried out as a whole and measured on the other samples: errors do not quite add up, so the bound
   of the knapsack moves until the choice is the cheapest that really holds

The result is a recipe, which the export then follows.
"""

from __future__ import annotations

import glob
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tapeout.compiler.errors import AccuracyError, TapeoutError, UsageError
from tapeout.compiler.recipe import Recipe, Rule
from tapeout.compiler.reference import Reference
from tapeout.compiler.schemes import FLOAT16, FLOAT32, STATIC, WEIGHTS
from tapeout.compiler.target import Request, Target
from tapeout.measuring import CHECKS, Ground
from tapeout.passes.quantization.knapsack import Option, solve
from tapeout.passes.quantization.precision import (
    Feed,
    Layer,
    LayerBoard,
    alone,
    layers,
    powers,
    shared,
    weight_bytes,
)
from tapeout.quantizing import with_quantization
from tapeout.road import Model, Wish, legalize, prepare, refuse

OPTION = "objective"
OBJECTIVES = ("size", "latency")
# What the outputs may lose of their variance, where --max-drop does not say.
DROP = 0.01
# Constants of fewer bytes in float32 are not worth a choice.
WORTH = 4096
# What decides between choices of the same size: less than a byte.
FINER = 0.01
# Runs of a whole model that its time is the median of.
TIMED = 5
# By how much the bound of the knapsack moves between two checks.
STEP = 2.0


@dataclass
class Picked:
    """What the search found: the scheme and the recipe of the export (None where all is one), and its account."""

    scheme: str
    recipe: Recipe | None
    options: dict[str, str] = field(default_factory=dict)
    account: dict[str, Any] = field(default_factory=dict)


@dataclass
class Choice:
    """One layer with its options by scheme."""

    layer: Layer
    options: dict[str, Option]


@dataclass
class Search:
    """The search for one export. `model` is read afresh for whatever is tried."""

    model: Model
    wish: Wish
    target: Target
    request: Request
    most: float
    notify: Callable[[str], None] | None = None

    def run(self) -> Picked:
        """Raises UsageError where the objective or the data is not fit, AccuracyError where nothing holds."""
        objective = self.request.options.get(OPTION, "size")
        if objective not in OBJECTIVES:
            raise UsageError(
                f"option '{OPTION}' is '{objective}'", hint=f"choose one of {', '.join(OBJECTIVES)}"
            )
        if not self.most > 0:
            raise UsageError(
                f"--max-drop {self.most:g}: expected a share of the outputs' variance, such as 0.01"
            )
        ground = Ground.of(prepare(self.model, self.wish).model, self.target, self.request)
        feeds, held = ground.samples()
        if not feeds or not held:
            raise UsageError(
                "the calibration data holds too few samples to choose on some and check on others"
            )
        candidates = [s for s in ground.schemes() if _candidate(s, objective, ground.schemes())]
        choices, times = self._measured(ground, candidates, objective, feeds)
        judge = Judge(ground, choices, held)
        found, error, rounds = self._settled(choices, judge)
        picked = self._picked(choices, found)
        picked.account = {
            "objective": objective,
            "max_drop": self.most,
            "drop": error,
            "samples": {"chosen_on": len(feeds), "checked_on": len(held)},
            "cost": sum(o.cost for o in found),
            "rounds": rounds,
            **({"seconds": times} if times else {}),
            "layers": [
                {
                    "layer": c.layer.name,
                    "op": c.layer.op,
                    "scheme": o.name,
                    "cost": {k: v.cost for k, v in c.options.items()},
                    "error": {k: v.error for k, v in c.options.items()},
                }
                for c, o in zip(choices, found, strict=True)
            ],
        }
        return picked

    # --- what each layer costs and adds ---

    def _measured(
        self, ground: Ground, candidates: Sequence[str], objective: str, feeds: Sequence[Feed]
    ) -> tuple[list[Choice], dict[str, float]]:
        groups = layers(ground.source)
        floats = FLOAT32 in self.target.schemes
        times: dict[str, float] = {}
        if objective == "latency":
            for scheme in (*((FLOAT32,) if floats else ()), *candidates):
                if (seconds := self._seconds(scheme, ground)) is not None:
                    times[scheme] = seconds
        macs = sum(layer.macs for layer in groups) or 1
        sizes = {i: weight_bytes(ground.source, layer) for i, layer in enumerate(groups)}
        worth = {
            i for i, layer in enumerate(groups)
            if (sizes[i] >= WORTH and (layer.product or layer.op == "Gather")) or (layer.macs and times)
        }  # fmt: skip

        def cost(i: int, scheme: str, size: int) -> float:
            if times:
                return times[scheme] * groups[i].macs / macs
            known = STATIC.get(scheme)
            width = 32 if known is None or known.act is None else known.act.bitwidth
            return size + FINER * width * groups[i].macs / macs  # of the same bytes, the narrower activations

        options: dict[int, dict[str, Option]] = {i: {} for i in sorted(worth)}
        if floats:
            for i in options:
                options[i][FLOAT32] = Option(FLOAT32, cost(i, FLOAT32, sizes[i]), 0.0)
        for scheme in candidates:
            if times and scheme not in times:
                continue
            self._say(f"measure {scheme}")
            made = ground.apply(scheme)
            if made is None:
                continue
            board = LayerBoard(made, ground.source, groups, feeds)
            mine = [i for i in board.changed if i in worth]
            for i, error in alone(board.error, mine).items():
                option = Option(scheme, cost(i, scheme, weight_bytes(made, groups[i])), error)
                if all((o.cost, o.error) != option[1:] for o in options[i].values()):
                    options[i][scheme] = option
            board.close()
        return [Choice(groups[i], o) for i, o in options.items() if o], times

    def _seconds(self, scheme: str, ground: Ground) -> float | None:
        """The time of one run of the model in `scheme`; None where it cannot be exported so. Raises UsageError
        where nothing here runs the target."""
        self._say(f"time {scheme}")
        data = None if scheme in WEIGHTS or scheme in (FLOAT32, FLOAT16) else self.request.calibration
        options = {**self.request.options, "refine": "off"}
        request = replace(
            self.request, scheme=scheme, recipe=None, calibration=data, options=options, dtypes={}
        )
        prepared = prepare(self.model, self.wish)
        with tempfile.TemporaryDirectory(prefix="tapeout-") as folder:
            place = Path(folder, "model" + self.target.suffix)
            try:
                _, acceptance = legalize(prepared.model, self.target, request)
                refuse(acceptance, self.target)
                with open(place, "wb") as sink:
                    self.target.emit(prepared.model, sink, request)
                runners = self.target.runners(place, request)
            except TapeoutError:
                return None
            if not runners:
                raise UsageError(
                    f"option {OPTION}=latency is measured, and nothing here runs {self.target.name} "
                    f"{self.request.device}",
                    hint=f"use {OPTION}=size",
                )
            feed = next(ground.calibration.feeds())
            taken = []
            for _ in range(TIMED + 1):
                start = time.perf_counter()
                runners[0].run(feed)
                taken.append(time.perf_counter() - start)
        return statistics.median(taken[1:])

    # --- the choice ---

    def _settled(
        self, choices: Sequence[Choice], judge: Judge
    ) -> tuple[list[Option], float, list[dict[str, float]]]:
        """The cheapest choice that keeps the bound on samples that it was not made on."""
        table = [list(c.options.values()) for c in choices]
        best: tuple[float, list[Option], float] | None = None
        tried: dict[tuple[str, ...], float] = {}
        rounds = []
        holding = failing = None  # bounds between which the right one lies
        bound = self.most
        for _ in range(CHECKS):
            found = solve(table, bound)
            key = tuple(o.name for o in found or ())
            if found is not None and key not in tried:
                self._say("check")
                tried[key] = judge.error(key)
                rounds.append({"bound": bound, "drop": tried[key], "cost": sum(o.cost for o in found)})
            elif found is not None and holding is not None and failing is not None:
                break  # nothing new lies between
            if found is not None and tried[key] <= self.most:
                holding = bound
                if best is None or sum(o.cost for o in found) < best[0]:
                    best = sum(o.cost for o in found), found, tried[key]
                bound = bound * STEP if failing is None else (bound * failing) ** 0.5
            elif found is not None:
                failing = bound
                bound = bound / STEP if holding is None else (bound * holding) ** 0.5
            elif failing is not None or bound > 1:
                break
            else:
                bound *= STEP
        if best is None:
            least = [min(options, key=lambda o: o.error) for options in table]
            error = judge.error(tuple(o.name for o in least))
            if error > self.most:
                raise AccuracyError(
                    f"no choice of precisions keeps the outputs within {self.most:g} of their variance: the finest "
                    f"loses {error:.3g}",
                    hint="allow more with --max-drop, or give a target or device that computes in floats",
                )
            best = sum(o.cost for o in least), least, error
        return best[1], best[2], rounds

    def _picked(self, choices: Sequence[Choice], found: Sequence[Option]) -> Picked:
        scheme, recipe = stated(choices, [o.name for o in found])
        given = self.request.recipe
        if recipe is not None and given is not None:
            rules = tuple(replace(r, index=i) for i, r in enumerate((*recipe.rules, *given.rules), 1))
            recipe = replace(given, scheme=scheme, rules=rules, raw={**given.raw, **recipe.raw, "rule": [
                *recipe.raw.get("rule", ()), *given.raw.get("rule", ())]})  # fmt: skip
        return Picked(scheme, recipe)

    def _say(self, text: str) -> None:
        if self.notify is not None:
            self.notify(text)


@dataclass
class Judge:
    """Carries out choices as a whole and measures them on `held` samples."""

    ground: Ground
    choices: Sequence[Choice]
    held: Sequence[Feed]
    _wanted: list[Mapping[str, Any]] = field(default_factory=list)

    def error(self, names: Sequence[str]) -> float:
        """The error of the outputs where layer i is stored by the scheme names[i]."""
        if not self._wanted:
            with Reference(self.ground.source) as reference:
                self._wanted = [reference.run(f) for f in self.held]
        scheme, recipe = stated(self.choices, names)
        made = self.ground.apply(scheme, recipe)
        if made is None:
            return float("inf")
        power = powers(self._wanted)
        with Reference(made) as reference:
            return shared((reference.run(f, list(power)) for f in self.held), self._wanted, power)


def automatic(search: Search, dtypes: Mapping[str, str] | None) -> tuple[Request, dict[str, Any]]:
    """The request that the search ends in, with its recipe and its calibration data, and the account of it."""
    picked = search.run()
    asked = replace(search.request, scheme=picked.scheme, recipe=None)
    if picked.scheme in (FLOAT32, FLOAT16):
        asked = replace(asked, calibration=None)
    return with_quantization(asked, picked.recipe, dtypes), picked.account


def stated(choices: Sequence[Choice], names: Sequence[str]) -> tuple[str, Recipe | None]:
    """The scheme of an export, and the recipe whose rules give each layer its own."""
    weights: dict[str, float] = {}
    for choice, name in zip(choices, names, strict=True):
        weights[name] = weights.get(name, 0.0) + 1 + choice.layer.macs
    for kind in (STATIC, WEIGHTS, (FLOAT16,)):
        inside = {k: w for k, w in weights.items() if k in kind}
        if inside:
            base = max(inside, key=lambda k: inside[k])
            break
    else:
        return FLOAT32, None
    rules: list[Rule] = []
    raw: list[dict[str, Any]] = []
    for choice, name in zip(choices, names, strict=True):
        if name == base:
            continue
        patterns = tuple(glob.escape(n) for n in choice.layer.origins)
        rules.append(Rule(len(rules) + 1, nodes=patterns, ops=(choice.layer.op,), scheme=name))
        raw.append({"node": list(patterns), "op": [choice.layer.op], "scheme": name})
    if not rules:
        return base, None
    told = {"scheme": base, "islands": False, "rule": raw}
    return base, Recipe(tuple(rules), base, islands=False, source="the choice of --quantize auto", raw=told)


def _candidate(scheme: str, objective: str, offered: Sequence[str]) -> bool:
    """Whether a scheme can be the best for a layer: for size not where another stores the same weights without
    rounding activations, nor where bits of the type are left unused; for latency not where only weights are
    smaller."""
    known = STATIC.get(scheme) or WEIGHTS.get(scheme)
    if known is None:
        return scheme == FLOAT16 and objective == "size"
    if known.table is not None or known.powers or known.bits:
        return False
    if objective == "latency":
        return scheme in STATIC
    stored = [WEIGHTS[s] for s in offered if s in WEIGHTS and not WEIGHTS[s].dynamic]
    if scheme in STATIC or known.dynamic:
        return not any(w.weight == known.weight for w in stored)
    return True
