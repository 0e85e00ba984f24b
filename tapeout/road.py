"""The road of a model up to emission: read, shaped as asked, through the target's passes, accepted or
refused."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx
import onnx_ir as ir

from tapeout.compiler.errors import UsageError
from tapeout.compiler.frontends.imported import Imported
from tapeout.compiler.pipeline import History, run
from tapeout.compiler.schemes import instead
from tapeout.compiler.target import Request, Target, loadable
from tapeout.compiler.target import target as find_target

if TYPE_CHECKING:
    from tapeout.compiler.declaration import Acceptance, Refusal
    from tapeout.compiler.partition import Part

# A path, a model in memory, or (from `importing`) a torch module or another framework's file made ONNX.
Model: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | ir.Model | Imported | Any"


@dataclass(frozen=True)
class Wish:
    """What the user asks of the model itself: sizes of inputs, axis orders, which outputs."""

    shape: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    layout: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[str] = ()


@dataclass
class Prepared:
    """A model as it was read and shaped; `perms` tells which inputs and outputs have another axis order."""

    model: ir.Model
    perms: dict[str, tuple[int, ...]]
    files: list[Path]
    framework: str | None = None  # that it came from, with its version; None for ONNX
    conversion_error: float | None = None  # of the ONNX form against the framework, None where it was not run
    parts: list[Part] | None = None  # of a bundle, once the model has been through the passes


def choose(
    target: str | Target,
    device: str | None,
    scheme: str | None,
    options: Mapping[str, str] | None,
) -> tuple[Target, Request]:
    """The target and what is asked of it; raises UsageError naming what it offers."""
    found = find_target(target) if isinstance(target, str) else target
    device = device or found.devices[0]
    if device not in found.devices:
        loaded, broken = loadable()
        others = [t for t in loaded if t.extends == found.name]
        known = [*found.devices, *(d for t in others for d in t.devices)]
        if device not in known:
            raise UsageError(
                f"target '{found.name}' has no device '{device}'; it has {', '.join(known)}",
                hint="; ".join(e.message for e in broken) or None,
            )
        found = next(t for t in others if device in t.devices)
    scheme = scheme or ("float32" if "float32" in found.schemes else found.schemes[0])
    if scheme not in found.schemes:
        raise UsageError(
            f"target '{found.name}' does not offer '{scheme}'; it offers {', '.join(found.schemes)}",
            hint=instead(scheme, found.schemes),
        )
    return found, Request(scheme=scheme, device=device, options=dict(options or {}))


def target_of(path: Path) -> Target | None:
    """The installed target that writes files such as `path`: where several do, the one that they are called
    after, since others narrow it."""
    if path.is_dir():
        return next((t for t in loadable()[0] if is_artifact(t, path)), None)
    if path.suffix in ("", ".onnx"):
        return None
    found = [t for t in loadable()[0] if t.suffix == path.suffix and t.extends is None]
    return next((t for t in found if f".{t.name}" == t.suffix), found[0] if found else None)


def is_artifact(target: Target, path: Path) -> bool:
    """Whether `path` is a folder that such a target writes."""
    return target.folder is not None and (path / target.folder).is_file()


def prepare(model: Model, wish: Wish) -> Prepared:
    """Read `model` into the IR, as `wish` says; a given object is not changed."""
    framework, conversion_error = None, None
    if isinstance(model, Imported):
        loaded, files = model.load(), list(model.files)
        framework, conversion_error = model.framework, model.error
    elif isinstance(model, str | os.PathLike):
        from tapeout.compiler.ir.load import load

        path = Path(model)
        if not path.exists():
            raise UsageError(f"the model '{path}' does not exist")
        if path.is_dir():
            raise UsageError(f"the model '{path}' is a folder, expected an ONNX file or a SavedModel")
        loaded = load(path)
        files = [Path(f) for f in loaded.meta.get("tapeout.files", [path])]
    else:
        from tapeout.compiler.ir.load import from_proto

        if not isinstance(model, onnx.ModelProto | ir.Model):
            raise UsageError(
                f"the model is a {type(model).__name__}; expected a path, onnx.ModelProto, onnx_ir.Model, "
                "torch.nn.Module or ExportedProgram"
            )
        loaded = from_proto(model if isinstance(model, onnx.ModelProto) else ir.to_proto(model))
        files = []
    if wish.outputs:
        from tapeout.compiler.ir.cut import cut_outputs

        cut_outputs(loaded, list(wish.outputs))
    if wish.shape:
        from tapeout.compiler.ir.cut import bind_shapes

        bind_shapes(loaded, {k: tuple(v) for k, v in wish.shape.items()})
    perms: dict[str, tuple[int, ...]] = {}
    if wish.layout:
        from tapeout.compiler.ir.relayout import set_layout

        perms = set_layout(loaded, wish.layout)
    return Prepared(loaded, perms, files, framework, conversion_error)


def opened(
    stack: ExitStack,
    model: Model,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    data: Any = None,
    threads: int | None = None,
    proven: bool = True,
) -> Model:
    """`model` as `prepare` takes it: what is no ONNX has been through its front end, until `stack` closes.

    `proven`: the converted model is run against the original, on `data` where given.
    """
    known = isinstance(model, onnx.ModelProto | ir.Model | Imported)
    if known or (isinstance(model, str | os.PathLike) and os.fspath(model).endswith(".onnx")):
        if example_inputs is not None or dynamic_shapes is not None:
            raise UsageError(
                "example_inputs and dynamic_shapes belong to a torch.nn.Module or ExportedProgram"
            )
        return model
    from tapeout.compiler.frontends.importing import importing

    return stack.enter_context(
        importing(
            model,
            example_inputs=example_inputs,
            dynamic_shapes=dynamic_shapes,
            data=data,
            threads=threads,
            proven=proven,
        )
    )


def legalize(model: ir.Model, target: Target, request: Request) -> tuple[History, Acceptance]:
    """Run the target's passes on `model` in place, and ask its declaration what it takes."""
    history = run(model, target.passes(request))
    acceptance = target.declaration(request.device).accept(model)
    acceptance.refused = [_with_reason(r, history) for r in acceptance.refused]
    return history, acceptance


def _with_reason(refusal: Refusal, history: History) -> Refusal:
    """A refusal that also says why no pass wrote the node out in other operators, where one tried to."""
    names = history.names()
    tried = history.steps[names.index("decompose") if "decompose" in names else 0 :]
    why = [d.reason for s in tried for d in s.declined if d.node == refusal.node.name]
    if not why or refusal.hint is not None:
        return refusal
    return replace(refusal, hint=f"no other operators can stand for it: {why[-1]}")


def refuse(acceptance: Acceptance, target: Target) -> None:
    """Raise UnsupportedError with every reason where something is refused."""
    if not acceptance.refused:
        return
    from tapeout.compiler.explanation import refusal_error

    error = refusal_error(acceptance, target.name)
    if can_leave(target):
        leave = "--fallback host leaves it to the CPU"
        error.hint = f"{error.hint}; {leave}" if error.hint else leave
    raise error


def can_leave(target: Target) -> bool:
    """Whether what the target refuses can be the host's: within its artifact, or in a bundle."""
    return target.extends is not None or can_bundle(target)


def can_bundle(target: Target) -> bool:
    """Whether an artifact of the target may be a part among others: none that another target or tool completes."""
    return target.extends is None and target.finish is None


def leave_to_host(
    acceptance: Acceptance, model: ir.Model, target: Target, request: Request
) -> tuple[Acceptance, list[Refusal]]:
    """What is accepted where the host beside the device takes what it refuses, and what that is."""
    if target.extends is None or not acceptance.refused:
        return acceptance, []
    wide = target.declaration(request.device).with_host().accept(model)
    still = {r.node for r in wide.refused}
    return wide, [r for r in acceptance.refused if r.node not in still]


def left_to_host(
    acceptance: Acceptance, model: ir.Model, target: Target, request: Request
) -> frozenset[ir.Node]:
    """The refused nodes that --fallback host leaves to the CPU."""
    if target.extends is not None:
        return frozenset(r.node for r in leave_to_host(acceptance, model, target, request)[1])
    return frozenset(r.node for r in acceptance.refused if can_leave(target))


def placement(acceptance: Acceptance) -> dict[str, int]:
    """How many operators each lowering made, most first: not what kernels compute along or read as it is stored."""
    from tapeout.passes.quantization.report import carried_out

    counts: dict[str, int] = {}
    on_codes = {node for node, row in acceptance.placed if any(rule.dtypes for rule in row.ports.values())}
    for node, row in acceptance.placed:
        if not carried_out(node, on_codes):
            continue
        name = row.lower or row.op
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def dtype_name(value: ir.Value) -> str:
    """The dtype as NumPy calls it: "float32"."""
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        return "unknown" if value.dtype is None else "string"
    return str(value.dtype.numpy().name)
