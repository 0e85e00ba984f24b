"""What a user says about quantization beyond the scheme: a recipe, the types of inputs and outputs; and what
the manifest and the report say of the result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import onnx_ir as ir

from tapeout.compiler.errors import UsageError
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.schemes import FLOAT16, STATIC, WEIGHTS, borders
from tapeout.compiler.target import Request, Target

# In the place of a scheme: the precision of each layer is searched for (`automatic.py`).
AUTO = "auto"

RecipeLike: TypeAlias = "str | os.PathLike[str] | Recipe"


def read_recipe(recipe: RecipeLike | None) -> Recipe | None:
    """The recipe that the user gives: an object, or the path of a TOML file. Raises UsageError."""
    return recipe if recipe is None or isinstance(recipe, Recipe) else Recipe.load(recipe)


def scheme_of(quantize: str | None, recipe: Recipe | None) -> str | None:
    """The scheme of an export: `quantize`, else the recipe's. Raises UsageError where a recipe has none."""
    if recipe is None or quantize is not None:
        return quantize
    if recipe.scheme is None:
        raise UsageError(
            f"{recipe.source} states no scheme for what its rules leave",
            hint='write scheme = "int8" at its top, or give --quantize',
        )
    return recipe.scheme


def with_quantization(request: Request, recipe: Recipe | None, dtypes: Mapping[str, str] | None) -> Request:
    """`request` with its recipe and the types of inputs and outputs. Raises UsageError where the scheme has
    no use for them."""
    if request.scheme not in STATIC:
        stores = request.scheme in WEIGHTS or request.scheme == FLOAT16
        if request.scheme == FLOAT16 and recipe is not None and recipe.states({*STATIC, *WEIGHTS}):
            raise UsageError(
                f"{recipe.source} states integers by rules, beside --quantize {FLOAT16}",
                hint=f"say a scheme of integers, and {FLOAT16} by rules",
            )
        if stores and not dtypes:
            return replace(request, recipe=recipe)
        given = "--recipe" if recipe is not None and not stores else "--dtype" if dtypes else None
        if given is not None:
            raise UsageError(
                f"{given} is given, and --quantize {request.scheme} does not compute in integers",
                hint=f"say a scheme that does: {', '.join(STATIC)}",
            )
        return request
    return replace(request, recipe=recipe, dtypes=dict(dtypes or {}))


def with_borders(request: Request, target: Target, model: ir.Model) -> Request:
    """`request` with integers for inputs and outputs of a device that takes nothing else, where the user has
    not said otherwise."""
    if not target.integer_borders or request.scheme not in STATIC:
        return request
    values = (*model.graph.inputs, *model.graph.outputs)
    return replace(request, dtypes=borders(request.scheme, values) | dict(request.dtypes))


def recipe_files(recipe: RecipeLike | None) -> list[str]:
    """The file that the recipe was read from."""
    return [] if recipe is None or isinstance(recipe, Recipe) else [os.fspath(recipe)]


def quantized(model: ir.Model, request: Request) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What the manifest says about the quantization of a legalized model, and what the report does; None for
    a scheme that does not quantize."""
    if request.scheme not in STATIC and request.scheme not in WEIGHTS:
        return None, None
    from tapeout.passes.quantization import quantization_report
    from tapeout.passes.quantization.interface import border

    found = quantization_report(model)
    kept = (
        "clusters",
        "float",
        "activations",
        "weights",
        "wide_activation_bytes",
        "boundaries",
        "macs",
        "spectral_macs",
    )
    said: dict[str, Any] = {k: found[k] for k in (*kept, "spectral_macs")}
    if request.recipe is not None:
        said["recipe"] = dict(request.recipe.raw)
    if request.dtypes:
        said["interface"] = {n: {"scale": p.scale, "zero_point": p.zero} for n, p in border(model).items()}
    return said, found
