"""Fixes that a pass or an option could make, tried on what a target refuses.

Nodes that are refused alike are one case: the first of them is cut out of the canonical source graph with what it
computes for, changed, and taken through the target's passes alone. A fix worked where nothing of it is refused
then. Where the node is taken alone, and refused in its surroundings only, the whole model is tried instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx
import onnx_ir as ir

from tapeout.calibrating import with_stand_in
from tapeout.compiler.declaration import Acceptance, Refusal, shown
from tapeout.compiler.errors import TapeoutError
from tapeout.compiler.explanation import Tried
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.cut import bind_shapes
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.operators import operator_name
from tapeout.compiler.partition import Part, extract, outermost, piece_of
from tapeout.compiler.pipeline import Pass, run
from tapeout.compiler.rewriting import Rewrite, Rule
from tapeout.compiler.target import Fix, Request, Target, extensions
from tapeout.quantizing import with_borders
from tapeout.road import Prepared, legalize

D = ir.DataType
MOST = 20  # kinds of refusal that are looked at


@dataclass(frozen=True)
class Trial:
    """One fix: `change` edits the source graph in place and says how often (None: by the request alone)."""

    words: str
    change: Callable[[ir.Model], int] | None = None
    target: Target | None = None
    request: Request | None = None


def tried(source: Prepared, acceptance: Acceptance, target: Target, request: Request) -> tuple[Tried, ...]:
    """What was tried on every kind of refusal, what worked first. Changes `source`."""
    from tapeout.passes.canonicalize import CANONICALIZE

    model = source.model
    run(model, CANONICALIZE)
    found: list[Tried] = []
    for part, same in _cases(model, acceptance.refused):
        names = tuple(dict.fromkeys(r.name for r in same))
        # A piece that is taken alone says nothing; then the model as a whole is asked.
        alone = extract(model, part)
        whole = _refused(alone.clone(), target, request) is None
        start = model if whole else alone
        ops = {n.op_type for n in part.nodes if n.domain == ""}
        for trial in trials(start, ops, target, request):
            outcome = _outcome(start.clone(), trial, target, request, set(names) if whole else None)
            if outcome is not None:
                found.append(Tried(operator_name(part.nodes[-1]), names, trial.words, not outcome, outcome))
    return tuple(sorted(found, key=lambda t: not t.worked))


def _cases(model: ir.Model, refused: Sequence[Refusal]) -> list[tuple[Part, list[Refusal]]]:
    """What is refused, each kind once: refusals for the same reasons, or of the same source nodes."""
    kinds: dict[tuple[str, str], list[Refusal]] = {}
    for refusal in refused:
        kinds.setdefault((refusal.op, refusal.why()), []).append(refusal)
    owner = outermost(model)
    cases: dict[tuple[ir.Node, ...], list[Refusal]] = {}
    for same in list(kinds.values())[:MOST]:
        wanted = set(origin(same[0].node))
        nodes = {owner[n] for n in owner if wanted & set(origin(n))}
        if nodes:
            cases.setdefault(tuple(n for n in model.graph if n in nodes), []).extend(same)
    return [(piece_of(model, set(nodes)), same) for nodes, same in cases.items()]


def _outcome(
    model: ir.Model, trial: Trial, target: Target, request: Request, names: set[str] | None
) -> str | None:
    """ "" where the trial worked, why it did not, or None where it changes nothing. With `names` only what is
    refused of these counts."""
    try:
        if trial.change is not None and not trial.change(model):
            return None
        why = _refused(model, trial.target or target, trial.request or request, names)
    except TapeoutError as error:
        return error.message.splitlines()[0]
    return why or ""


def _refused(model: ir.Model, target: Target, request: Request, names: set[str] | None = None) -> str | None:
    """The first reason why the target does not take `model`, None where it does."""
    try:
        asked = with_stand_in(request, None, Prepared(model, {}, []))
        _, acceptance = legalize(model, target, with_borders(asked, target, model))
    except TapeoutError as error:
        return error.message.splitlines()[0]
    refused = [r for r in acceptance.refused if names is None or r.name in names]
    return str(refused[0]) if refused else None


def trials(model: ir.Model, ops: set[str], target: Target, request: Request) -> Iterator[Trial]:
    """Every fix that may concern these operators on this target."""
    for fix in (*target.fixes, *_rewrites(ops)):
        yield Trial(fix.words, _by(fix.passes))
    free = {d for v in model.graph.inputs for d in g.dims(v) or () if isinstance(d, str)}
    if free:
        yield Trial(f"--shape fixes the free sizes ({', '.join(sorted(free))})", _fixed)
    seen = {target.declaration(request.device).label}
    for device in target.devices:
        label = target.declaration(device).label  # devices of one label take the same
        if label not in seen:
            seen.add(label)
            yield Trial(f"--device {device}", request=replace(request, device=device))
    for other in extensions(target.name) if target.extends is None else ():
        if request.scheme in other.schemes:
            device = other.devices[0]
            yield Trial(f"--device {device}", target=other, request=replace(request, device=device))
    if "float32" in target.schemes and request.scheme not in ("float32", "float16"):
        yield Trial("--quantize float32", request=replace(request, scheme="float32"))


def _by(passes: Sequence[Pass]) -> Callable[[ir.Model], int]:
    def change(model: ir.Model) -> int:
        return sum(s.count for s in run(model, passes).steps)

    return change


def _fixed(model: ir.Model) -> int:
    """Every free size at 8, which most kernels and windows fit in."""
    shapes = {v.name or "": g.dims(v) for v in model.graph.inputs}
    free = {k: [8 if isinstance(d, str) else d for d in v] for k, v in shapes.items() if v}
    changed = {k: v for k, v in free.items() if tuple(v) != shapes[k]}
    bind_shapes(model, changed)
    return len(changed)


def _rewrites(ops: set[str]) -> Iterator[Fix]:
    """Our own passes that write operators otherwise, whatever the target has kernels for."""
    from tapeout.passes.decompose import (
        DEPTH_TO_SPACE_DCR,
        PLAIN_GEMM,
        RESIZE_BY_MATMUL,
        RULES,
        SOFTMAX_ON_LAST_AXIS,
        Decompose,
    )
    from tapeout.passes.decompose.arithmetic import ARITHMETIC
    from tapeout.passes.decompose.functions import defined
    from tapeout.passes.decompose.indexing import INDEXING
    from tapeout.passes.decompose.precision import Widen
    from tapeout.passes.decompose.quantized import QUANTIZED
    from tapeout.passes.decompose.recurrent import Recurrent
    from tapeout.passes.decompose.reductions import REDUCTIONS
    from tapeout.passes.decompose.shaping import SHAPING
    from tapeout.passes.decompose.unrolling import Unroll

    every = frozenset(s.name for s in onnx.defs.get_all_schemas() if s.domain == "")
    families: tuple[tuple[str, tuple[Rule, ...]], ...] = (
        ("in simpler arithmetic", ARITHMETIC),
        ("in other reductions", REDUCTIONS),
        ("in other indexing", INDEXING),
        ("in other shape operators", SHAPING),
        ("quantization as arithmetic", QUANTIZED),
    )
    for op in sorted(ops):
        if op in defined() or any(op in r.ops for r in RULES):
            yield Fix(f"write {shown(op)} out in simpler operators", (Decompose(every - {op}),))
        for words, rules in families:
            mine = tuple(r for r in rules if op in r.ops)
            if mine:
                yield Fix(f"write {shown(op)} {words}", (Rewrite("fix", mine),))
    own: tuple[tuple[set[str], str, Pass], ...] = (
        ({"Softmax", "LogSoftmax"}, "move the axis of {} last", SOFTMAX_ON_LAST_AXIS),
        ({"DepthToSpace"}, "take the blocks of {} by columns", DEPTH_TO_SPACE_DCR),
        ({"Gemm"}, "write {} as a matrix product and a sum", PLAIN_GEMM),
        ({"Resize"}, "write {} as products with matrices", RESIZE_BY_MATMUL),
        ({"LSTM", "GRU", "RNN"}, "write {} out step by step", Recurrent()),
        ({"Loop", "Scan", "If"}, "unroll {}", Unroll()),
    )
    for which, words, step in own:
        if which & ops:
            yield Fix(words.format(", ".join(sorted(which & ops))), (step,))
    plain = tuple(sorted(ops - {"Cast"}))
    if plain:
        floats = Widen(plain, {D.FLOAT16: D.FLOAT, D.BFLOAT16: D.FLOAT, D.DOUBLE: D.FLOAT})
        integers = Widen(plain, {D.INT8: D.INT32, D.UINT8: D.INT32, D.INT16: D.INT32, D.INT64: D.INT32})
        yield Fix("compute it in float32 between casts", (Rewrite("fix", (floats,)),))
        yield Fix("compute it in int32 between casts, exact below 2^31", (Rewrite("fix", (integers,)),))
