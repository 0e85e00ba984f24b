"""What a file is held to besides its numbers: low bits execute as such, and prepared inputs are what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.sdk import STATIC, WEIGHTS, AccuracyError, InvalidModelError, Reference, Request, difference
from tapeout.sdk import graph as g
from tapeout.targets.openvino.inspection import hold
from tapeout.targets.openvino.preparation import OPTION, PREPARED, Preparation, parse, reference, spread
from tapeout.targets.openvino.runtime import core

# What a prepared value may differ by, as a share of the largest: a resize adds up to sixteen products in float32.
TOLERANCE = 1e-5
# Heights and widths that a caller's free sizes are tried at, and the size of other free ones.
SIZES = ((37, 53), (480, 640))
FREE = 2


def keep(artifact: Path, weights: Path, request: Request) -> None:
    """Raise AccuracyError where a promise of the file is broken on the CPU plugin."""
    prepared = {k.removeprefix(OPTION): v for k, v in request.options.items() if k.startswith(OPTION)}
    if not prepared and request.scheme not in WEIGHTS and request.scheme not in STATIC:
        return
    try:
        model = core().read_model(artifact, weights)
    except RuntimeError:
        return  # the runner says so
    if request.scheme in WEIGHTS or request.scheme in STATIC:
        try:
            compiled = core().compile_model(model, "CPU", {})
        except RuntimeError:  # bfloat16 beside integers that come from outside: a kernel cut out of its graph
            try:
                compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            except RuntimeError:
                return  # the runner says so
        hold(model, compiled, artifact.name)
    if prepared:
        prepares(model, prepared)


def prepares(model: Any, asked: Mapping[str, str]) -> None:
    """Compare what the file prepares with the same in ONNX Runtime, on random inputs."""
    ports = {
        name.removesuffix(PREPARED): port
        for node in model.get_ordered_ops()
        for port in node.outputs()
        for name in port.get_names()
        if name.endswith(PREPARED)
    }
    for name, text in asked.items():
        if name not in ports:
            raise InvalidModelError(f"the file prepares no input '{name}'")
        _prepares(model, ports[name], parse(_value(name, ports[name]), text))


def _value(name: str, port: Any) -> ir.Value:
    shape = [d.get_length() if d.is_static else f"{name}_{i}" for i, d in enumerate(port.get_partial_shape())]
    half = port.get_element_type().get_type_name() == "f16"
    kind = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))


def _prepares(model: Any, port: Any, made: Preparation) -> None:
    import openvino as ov

    parameter = next(p for p in model.get_parameters() if made.name in p.output(0).get_names())
    alone = ov.Model([port], [parameter], "preparation")
    compiled = core().compile_model(alone, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    program = reference(made)
    (given,) = program.graph.inputs
    free = [d for d in g.dims(given) or () if not isinstance(d, int)]
    with Reference(program) as expected:
        for index, sizes in enumerate(
            SIZES if any(str(d).endswith(("_H", "_W")) for d in free) else SIZES[:1]
        ):
            bound = dict(zip((f"{made.name}_H", f"{made.name}_W"), sizes, strict=True))
            shape = tuple(d if isinstance(d, int) else bound.get(d, FREE) for d in g.dims(given) or ())
            x = _draw(np.random.default_rng(index), shape, made.type)
            y = np.asarray(compiled([x])[0]).astype(np.float32)
            found = difference(expected.run({"x": x})["y"], y)
            if found.shape != found.found_shape or not found.relative <= TOLERANCE * spread(made):
                raise AccuracyError(
                    f"option {OPTION}{made.name}: what the file makes of {list(shape)} is off by {found.relative:.1e} "
                    f"of the largest value, at most {TOLERANCE * spread(made):.1e} is allowed",
                    hint="a fault of tapeout or of the runtime: please report it",
                )


def _draw(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray[Any, Any]:
    if kind.startswith("f"):
        return rng.standard_normal(shape).astype(np.float16 if kind == "f16" else np.float32)
    dtype = np.dtype({"u": "uint", "i": "int"}[kind[0]] + kind[1:])
    limits = np.iinfo(dtype)
    wide = min(limits.max, 1 << 16)
    return rng.integers(max(limits.min, -wide), wide, shape, endpoint=True).astype(dtype)
