"""What is said of an export: the manifest, the same wherever it is made, and facts for the report."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from tapeout.calibrating import described
from tapeout.compiler.pipeline import History
from tapeout.compiler.schemes import STATIC
from tapeout.compiler.target import Request, Target
from tapeout.road import Prepared, Wish, dtype_name, placement

if TYPE_CHECKING:
    from tapeout.compiler.declaration import Acceptance

MANIFEST = "tapeout.manifest/1"
# Requirements of the command line, which make no difference to an artifact.
FACE = ("typer", "rich")


def manifest_of(
    target: Target, request: Request, wish: Wish, prepared: Prepared, history: History, acceptance: Acceptance
) -> dict[str, Any]:
    """What went into the artifact: the same for the same input, options and versions, wherever it is made."""
    return {
        "schema": MANIFEST,
        "target": target.name,
        "device": request.device,
        "scheme": request.scheme,
        "options": dict(sorted(request.options.items())),
        "wish": {
            "shape": {k: list(v) for k, v in sorted(wish.shape.items())},
            "layout": dict(sorted(wish.layout.items())),
            "outputs": list(wish.outputs),
        },
        **({} if prepared.framework is None else {"framework": prepared.framework}),
        "packages": _packages(),
        "calibration": described(request),
        "passes": [{"name": s.name, "changes": s.count} for s in history.steps],
        "placement": placement(acceptance),
        "interface": _interface(prepared, request),
        **({"tensors": _tensors(prepared)} if request.scheme in STATIC else {}),
    }


def _tensors(prepared: Prepared) -> list[dict[str, Any]]:
    """Which tensors of the artifact hold which of the source, and by what scale: what its passes chose by
    calibration data that `compare` has not."""
    from tapeout.compiler.comparison import holders_of

    return [holder.as_json() for holder in holders_of(prepared.model)]


def _packages() -> dict[str, str]:
    """Versions of tapeout and of what it requires: all that can make a difference to the bytes."""
    from importlib import metadata

    found: dict[str, str] = {}
    required = [re.split(r"[^\w.-]", r)[0] for r in metadata.requires("tapeout") or () if "extra ==" not in r]
    required = [r for r in required if r not in FACE]
    for name in ("tapeout", *sorted(required)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def summary(prepared: Prepared) -> dict[str, Any]:
    graph = prepared.model.graph
    came: dict[str, Any] = {}
    if prepared.framework is not None:
        came = {"framework": prepared.framework, "conversion_error": prepared.conversion_error}
    return came | {
        "nodes": len(graph),
        "weights": sum(
            v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None
        ),
    }


def _interface(prepared: Prepared, request: Request) -> dict[str, Any]:
    from tapeout.compiler.ir import graph as g
    from tapeout.compiler.states import states

    def entry(value: Any) -> dict[str, Any]:
        shape = g.dims(value)
        return {
            "name": value.name,
            "dtype": dtype_name(value),
            "shape": None if shape is None else list(shape),
        }

    graph, kept = prepared.model.graph, states(prepared.model, request.options)
    found: dict[str, Any] = {
        "inputs": [entry(v) for v in graph.inputs if v.name not in kept],
        "outputs": [entry(v) for v in graph.outputs if v.name not in kept.values()],
    }
    if kept:
        found["states"] = [entry(v) | {"next": kept[v.name]} for v in graph.inputs if v.name in kept]
    return found


def host() -> dict[str, Any]:
    import platform

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
