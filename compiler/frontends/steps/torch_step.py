"""torch to ONNX: a module in this process, or as a script an ExportedProgram in a process of its own.

As a script it reads one JSON request per line from standard input and answers with one line each (see `isolated.py`).
"""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

# Weights of more bytes than this go into a file beside the ONNX file.
INLINE_BYTES = 1_500_000_000
SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"


class Refused(Exception):
    """What cannot be converted; `kind` is the failure's class, as `isolated.py` lists them."""

    def __init__(self, kind: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.hint = kind, message, hint


class Converted:
    """A program with its ONNX form: `path`, `modules` (ONNX node -> torch module path), `outputs` in order."""

    def __init__(self, program: Any, path: str, call: Any = None, names: Any = None) -> None:
        """Write `program` (ExportedProgram) to `path`. `call` is what computes the original; default: the program.
        `names` are the dynamic shapes that sizes are called after."""
        self._program = program
        self._call = program.module() if call is None else call
        self.path = path
        onnx_program = _to_onnx(program, names)
        graph = onnx_program.model.graph
        _name_outputs(onnx_program.model, program)
        self.inputs = [v.name for v in graph.inputs]
        self.outputs = [v.name for v in graph.outputs]
        self.modules = modules(onnx_program.model)
        size = sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
        with _quiet():
            onnx_program.save(path, external_data=size > INLINE_BYTES)

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The original's outputs for `feed`, both by the names of the ONNX form."""
        import torch
        from torch.utils import _pytree as pytree

        tensors = {k: torch.from_numpy(np.array(v)) for k, v in feed.items()}
        leaves = [
            tensors[name] if isinstance(name, str) and name in tensors else name
            for name in self._program.graph_signature.user_inputs
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self._program.call_spec.in_spec)
        with torch.no_grad(), _quiet():
            found = pytree.tree_leaves(self._call(*args, **kwargs))
        arrays = [v.detach().numpy() for v in found if isinstance(v, torch.Tensor)]
        if len(arrays) != len(self.outputs):
            raise Refused(
                "unsupported", f"the program gives {len(arrays)} tensors, its ONNX form {len(self.outputs)}"
            )
        return dict(zip(self.outputs, arrays, strict=True))


def version() -> str:
    """The version of torch that runs."""
    import torch

    return str(torch.__version__)


def export_module(module: Any, inputs: Any, dynamic_shapes: Any) -> tuple[Any, Any]:
    """(ExportedProgram, its dynamic shapes) of an nn.Module called with `inputs`: a tensor, a tuple or a dict of
    keywords. Strings in `dynamic_shapes` name sizes."""
    import torch

    training = next((name for name, m in module.named_modules() if m.training), None)
    if training is not None:
        raise Refused(
            "usage",
            f"the module {training or type(module).__name__!r} is in training mode",
            "call module.eval() first: dropout and batch statistics would be exported as in training",
        )
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (_tuple(inputs), {})
    dims: dict[str, Any] = {}
    shapes = _named(dynamic_shapes, dims)
    try:
        with _quiet():
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise Refused(
            "unsupported",
            f"torch.export cannot trace {type(module).__name__}: {_first_lines(error)}",
            "what torch.export can trace, it says itself: torch.export.export(module, example_inputs)",
        ) from error
    return program, shapes


def load_program(path: str, schema: Sequence[int], wrote: str) -> Any:
    """The ExportedProgram in the checked archive at `path`; `schema` and `wrote` are what the archive says of
    itself."""
    import torch

    known = _schema_version()
    here = torch.__version__
    other = (
        f"it was written by torch {wrote} (format {'.'.join(map(str, schema))}), torch {here} is installed"
    )
    hint = "save it again with the installed torch, or install the torch that wrote it"
    if known is not None and (schema[0] != known[0] or schema[1] > known[1]):
        raise Refused("invalid_model", f"{other}, which reads format {'.'.join(map(str, known))}", hint)
    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as error:
        if wrote != here:
            raise Refused(
                "invalid_model", f"{other}; it does not load: {_first_lines(error)}", hint
            ) from error
        raise Refused("invalid_model", f"torch cannot load the program: {_first_lines(error)}") from error


def modules(model: Any) -> dict[str, str]:
    """ONNX node -> path of the torch module whose forward made it; the outermost module goes by its class."""
    found: dict[str, str] = {}
    for node in model.graph.all_nodes():
        scopes = _list(node.metadata_props.get(SCOPES))[:-1]
        classes = _list(node.metadata_props.get(CLASSES))
        path = next((s for s in reversed(scopes) if s), "")
        if not path and classes:
            path = classes[0].rpartition(".")[2]
        if path and node.name:
            found[node.name] = path
    return found


def _to_onnx(program: Any, names: Any) -> Any:
    import torch

    try:
        with _quiet():
            # Optimizations stay off: they merge nodes of several modules and forget all but one.
            made = torch.onnx.export(
                program, dynamo=True, optimize=False, verbose=False, dynamic_shapes=names, external_data=False
            )
    except Exception as error:
        raise Refused("unsupported", f"torch.onnx cannot convert the program: {_reason(error)}") from error
    if made is None:
        raise Refused("unsupported", "torch.onnx made nothing of the program")
    return made


def _name_outputs(model: Any, program: Any) -> None:
    """Outputs that the module returns in a dict are called by its keys."""
    from torch.utils import _pytree as pytree

    spec = program.call_spec.out_spec
    leaves = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    outputs = list(model.graph.outputs)
    if (
        not isinstance(leaves, dict)
        or len(outputs) != len(leaves)
        or not all(isinstance(i, int) for i in leaves.values())
    ):
        return
    taken = {v.name for v in model.graph.inputs} | {
        o.name for n in model.graph.all_nodes() for o in n.outputs
    }
    taken |= set(model.graph.initializers)
    for key, index in leaves.items():
        if isinstance(key, str) and key not in taken:
            outputs[index].name = key


def _named(shapes: Any, dims: dict[str, Any]) -> Any:
    """`shapes` with its strings as torch.export.Dim, one for each name."""
    import torch

    if isinstance(shapes, str):
        if shapes not in dims:
            dims[shapes] = torch.export.Dim(shapes)
        return dims[shapes]
    if isinstance(shapes, Mapping):
        return {k: _named(v, dims) for k, v in shapes.items()}
    if isinstance(shapes, tuple | list):
        return type(shapes)(_named(v, dims) for v in shapes)
    return shapes


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def _list(text: str | None) -> list[str]:
    try:
        found = ast.literal_eval(text or "[]")
    except (ValueError, SyntaxError):
        return []
    return [str(each) for each in found] if isinstance(found, list) else []


def _schema_version() -> tuple[int, int] | None:
    try:
        from torch._export.serde.schema import SCHEMA_VERSION
    except ImportError:
        return None
    return int(SCHEMA_VERSION[0]), int(SCHEMA_VERSION[1])


def _reason(error: BaseException) -> str:
    """What lies at the bottom of an exporter's error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_lines(error)


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + " ".join(lines[:3])[:400]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch tells about packages that are not installed and about its own future; nobody asked."""
    logger = logging.getLogger("torch")
    exporter = logging.getLogger("torch.onnx")
    levels = logger.level, exporter.level
    logger.setLevel(logging.ERROR)
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(levels[0])
        exporter.setLevel(levels[1])


class Step:
    """The requests that the script answers."""

    def __init__(self) -> None:
        self._converted: Converted | None = None

    def convert(self, request: Mapping[str, Any]) -> dict[str, Any]:
        program = load_program(request["source"], request["schema"], request["wrote"])
        made = self._converted = Converted(program, request["target"])
        return {"modules": made.modules, "version": version(), "inputs": made.inputs, "outputs": made.outputs}

    def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._converted is not None
        with np.load(request["feed"], allow_pickle=False) as feed:
            found = self._converted.run(dict(feed))
        np.savez(request["result"], **found)
        return {}


if __name__ == "__main__":
    import runpy

    serve = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "serve.py"))["serve"]
    serve(Step(), needs=("torch", "onnxscript"), arguments=sys.argv[1:])
