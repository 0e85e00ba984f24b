"""The one module that a target imports, ours included: what a target is made of, and nothing that runs one.

A target is a `target.toml` (what the hardware takes) and a `Target` named by an entry point of the group
`tapeout.targets`. `docs/sdk.md` lists every name here; what is not here may change in any release. The module
stands below the targets and above the passes: it imports from those and from the compiler only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from tapeout.compiler.declaration import Acceptance, Declaration, Refusal, Row, Violation, source_name
from tapeout.compiler.declaration.files import API
from tapeout.compiler.errors import (
    AccuracyError,
    BudgetError,
    InternalError,
    InvalidModelError,
    MissingToolError,
    ResourceError,
    TapeoutError,
    UnsupportedError,
    UsageError,
    VendorToolError,
)
from tapeout.compiler.foreign import Port
from tapeout.compiler.ir import graph
from tapeout.compiler.ir.external import release
from tapeout.compiler.ir.functions import DOMAIN, declare
from tapeout.compiler.ir.origin import merged_origin, origin, set_origin
from tapeout.compiler.operators import Activation, Call, Storage, fused_activation, storage
from tapeout.compiler.pipeline import Pass
from tapeout.compiler.quantities import Quantity, quantity
from tapeout.compiler.quantities.general import axes
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.rewriting import Builder, Changes, Declined, NodeRule, PatternRule, Rewrite, Rule
from tapeout.compiler.schemes import FLOAT16, FLOAT32, STATIC, WEIGHTS, Scheme
from tapeout.compiler.states import OPTION as STATE
from tapeout.compiler.states import CheckStates, states
from tapeout.compiler.target import Finished, Fix, Request, Runner, Target, Timer, target

if TYPE_CHECKING:
    from tapeout.compiler.artifact import file_errors, json_bytes
    from tapeout.compiler.calibration.step import Calibrate
    from tapeout.compiler.ir.save import save, to_proto_without
    from tapeout.compiler.metrics import difference
    from tapeout.compiler.narrowing import OPTION as WIDE
    from tapeout.compiler.narrowing import patterns
    from tapeout.compiler.outlining import Outline
    from tapeout.compiler.reference import Reference
    from tapeout.passes.canonicalize import CANONICALIZE
    from tapeout.passes.decompose import Decompose
    from tapeout.passes.fusion import FUSION
    from tapeout.passes.layout import ChannelsLast
    from tapeout.passes.quantization import Quantize

# What is imported when it is first asked for: a target is listed and explained without it.
_LATER = {
    "CANONICALIZE": "tapeout.passes.canonicalize",
    "Calibrate": "tapeout.compiler.calibration.step",
    "ChannelsLast": "tapeout.passes.layout",
    "Decompose": "tapeout.passes.decompose",
    "FUSION": "tapeout.passes.fusion",
    "Outline": "tapeout.compiler.outlining",
    "Quantize": "tapeout.passes.quantization",
    "Reference": "tapeout.compiler.reference",
    "WIDE": "tapeout.compiler.narrowing:OPTION",
    "difference": "tapeout.compiler.metrics",
    "file_errors": "tapeout.compiler.artifact",
    "json_bytes": "tapeout.compiler.artifact",
    "patterns": "tapeout.compiler.narrowing",
    "save": "tapeout.compiler.ir.save",
    "to_proto_without": "tapeout.compiler.ir.save",
}

__all__ = [
    "API", "CANONICALIZE", "DOMAIN", "FLOAT16", "FLOAT32", "FUSION", "STATE", "STATIC", "WEIGHTS", "WIDE",
    "Acceptance", "AccuracyError", "Activation", "BudgetError", "Builder", "Calibrate", "Call", "Changes",
    "ChannelsLast", "CheckStates", "Declaration", "Declined", "Decompose", "Finished", "Fix", "InternalError",
    "InvalidModelError", "MissingToolError", "NodeRule", "Outline", "Pass", "PatternRule", "Port", "Quantity",
    "Quantize", "Recipe", "Reference", "Refusal", "Request", "ResourceError", "Rewrite", "Row", "Rule",
    "Runner", "Scheme", "Storage", "TapeoutError", "Target", "Timer", "UnsupportedError", "UsageError",
    "VendorToolError", "Violation",
    "axes", "declarations", "declare", "difference", "extension", "file_errors", "fused_activation", "graph",
    "json_bytes", "lowered", "merged_origin", "origin", "patterns", "quantity", "release", "save", "set_origin",
    "source_name", "standard_passes", "states", "storage", "target", "to_proto_without",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'tapeout.sdk' has no attribute '{name}'")
    import importlib

    module, _, own = _LATER[name].partition(":")
    return getattr(importlib.import_module(module), own or name)


def declarations(
    path: str | Path, quantities: Iterable[Quantity] | Callable[[], Iterable[Quantity]] = ()
) -> Callable[[str], Declaration]:
    """The field `declaration` of a Target: a target.toml read once for each device that is asked for.

    `quantities` are the target's own, or a function that gives them when the file is first read.
    """

    @functools.cache
    def declaration(device: str) -> Declaration:
        own = quantities() if callable(quantities) else quantities
        return Declaration.load(path, device=device, quantities=own)

    return declaration


def standard_passes(
    request: Request,
    rows: Declaration,
    *,
    legalize: Sequence[Pass] = (),
    keep: Iterable[str] = (),
    channels_last: bool = False,
) -> tuple[Pass, ...]:
    """The road that serves most targets: canonical, fused, written out in what `rows` take, then `legalize`,
    measured and quantized where the scheme is a static one, named patterns outlined. Where a row takes
    `tapeout::FullyConnected`, products by constant matrices become calls of it, their bias with them.

    `keep` names operators besides those of rows that are left whole for `legalize`; with `channels_last` the
    graph is NHWC, its windows calls of `tapeout::ConvNHWC` and its like. Weight-only schemes are the target's own.
    """
    from tapeout.compiler.outlining import Outline
    from tapeout.passes.canonicalize import CANONICALIZE
    from tapeout.passes.decompose import Decompose
    from tapeout.passes.decompose.quantized import QUANTIZED
    from tapeout.passes.fusion import FUSION
    from tapeout.passes.layout import ChannelsLast
    from tapeout.passes.quantization import Quantize
    from tapeout.passes.quantization.arriving import ARRIVING

    taken = rows.operators()
    whole = {op for op in taken if "::" not in op} | set(keep)
    inside = {n.op_type for f in rows.functions.values() for n in f}
    whole |= inside  # what a pattern is made of is looked for, not written out
    whole |= {op for op in LAYOUT if f"tapeout::{op}NHWC" in taken} if channels_last else set()
    products: tuple[Pass, ...] = ()
    if f"{DOMAIN}::FullyConnected" in taken:
        from tapeout.passes.layout.fully_connected import FullyConnected

        whole, products = whole | {"Gemm"}, (FullyConnected(),)
    static, calibration = STATIC.get(request.scheme), request.calibration
    arithmetic = Rewrite("quantization as arithmetic", tuple(QUANTIZED))
    arriving: tuple[Pass, ...] = (ARRIVING,) if static else (arithmetic,)
    measured: tuple[Pass, ...] = ()
    quantized: tuple[Pass, ...] = ()
    if static is not None:
        collected = None if calibration is None else lambda: calibration.collected
        quantized = (Quantize(static, rows, collected, request.recipe or Recipe(), request.dtypes),)
        if calibration is not None:
            from tapeout.compiler.calibration.step import Calibrate

            measured = (Calibrate(calibration),)
    return (
        *CANONICALIZE, *FUSION, Decompose(frozenset(whole)), *CANONICALIZE,
        *arriving, *legalize, *products, *measured,
        *((ChannelsLast(),) if channels_last else ()),
        Outline(rows), *CANONICALIZE, *quantized,
    )  # fmt: skip


# Operators that `ChannelsLast` makes calls of functions.
LAYOUT = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LRN", "DepthToSpace", "SpaceToDepth")


def lowered(model: ir.Model, rows: Declaration) -> Iterator[tuple[ir.Node, Row]]:
    """Every node of the main graph in order with the row that takes it: what an emitter walks over.

    Raises UnsupportedError with every reason where the declaration refuses a node.
    """
    acceptance = rows.accept(model)
    if acceptance.refused:
        from tapeout.compiler.explanation import refusal_error

        raise refusal_error(acceptance)
    taken = {id(node): row for node, row in acceptance.placed}
    for node in model.graph:
        yield node, taken[id(node)]


def extension(
    parent: str,
    *,
    name: str,
    suffix: str,
    schemes: tuple[str, ...],
    devices: tuple[str, ...],
    declaration: Callable[[str], Declaration],
    finish: Callable[[Path, ir.Model, Request], Finished] | None = None,
    runners: Callable[[Path, Request], Sequence[Runner]] | None = None,
    integer_borders: bool = False,
) -> Target:
    """A target that narrows another: `parent`'s passes and emission, `declaration` of rows beneath the parent's.

    The quantizer asks these rows first, and the host's where they take nothing. `finish` is a vendor's compiler run
    on the emitted file; `runners` (default: the parent's) are asked of what is emitted and of what is finished.
    """

    def plain(request: Request) -> Request:
        return replace(request, device=target(parent).devices[0])

    def passes(request: Request) -> tuple[Pass, ...]:
        rows = declaration(request.device).with_host()
        return tuple(narrowed(step, rows) for step in target(parent).passes(plain(request)))

    def narrowed(step: Pass, rows: Declaration) -> Pass:
        from tapeout.passes.quantization import Quantize

        if isinstance(step, Quantize):
            return replace(step, declaration=rows)
        inner = getattr(step, "quantize", None)  # what refines the quantization holds it
        return replace(step, quantize=narrowed(inner, rows)) if isinstance(inner, Quantize) else step  # type: ignore[type-var]

    def emit(model: ir.Model, sink: Any, request: Request, *parts: Any) -> None:
        target(parent).emit(model, sink, plain(request), *parts)

    def run(artifact: Path, request: Request) -> Sequence[Runner]:
        return target(parent).runners(artifact, plain(request))

    return Target(
        name=name, suffix=suffix, schemes=schemes, devices=devices, declaration=declaration, passes=passes,
        emit=emit, runners=runners or run, extends=parent, finish=finish, integer_borders=integer_borders,
    )  # fmt: skip
