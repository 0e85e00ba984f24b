"""Reads an ExportedProgram archive (`.pt2`) as data, and writes the part of it that is safe to load.

`torch.export.load` unpickles example inputs, pickled weights and custom objects, evaluates size expressions and
guards as Python, and looks operators up by any dotted path below `torch`. So an archive is never handed to it as
it came: the graph is checked against what an exported program needs, what would be unpickled is refused (the
example inputs, which nothing needs, are left out), and torch is given a copy that holds nothing else.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapeout.compiler.artifact import file_errors
from tapeout.compiler.errors import InvalidModelError, ResourceError, UnsupportedError

# A graph as JSON may be this large; weights are not counted.
JSON_BYTES = 256 << 20
# Depth of nested lists and objects in it.
DEPTH = 200

AGAIN = "save it again with torch.export.save(torch.export.export(module, inputs), 'model.pt2')"
_PROGRAM = "models/"
_WEIGHTS = ("data/weights/", "data/constants/")
_TENSOR = re.compile(r"^data/(weights/weight_\d+|constants/tensor_\d+)$")
_CONFIG = re.compile(r"^data/(weights|constants)/[\w.-]+_(weights|constants)_config\.json$")

# Operators: PyTorch's own, arithmetic on sizes, and control flow. Nothing else is looked up.
_TARGETS = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\._?sym_\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt|pow)"
)
_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save|_save|load)\b")

# Size expressions as torch writes them (SymPy's own notation): arithmetic on symbols and whole numbers.
_FUNCTIONS = {
    "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "floor", "ceiling", "Symbol", "Integer", "Float", "Rational",
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
    "PowByNatural", "FloatTrueDiv", "IntTrueDiv", "TruncToInt", "RoundToInt", "ToFloat", "Identity",
    "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan",
    "GreaterThan", "And", "Or", "Not",
}  # fmt: skip
_POWERS = ("Pow", "PowByNatural")
_SYMBOL = re.compile(r"\w{1,60}")
_ARITHMETIC = (
    ast.Expression, ast.Load, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.UnaryOp,
    ast.USub, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.keyword,
)  # fmt: skip

# What inputs and outputs may be nested in.
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


@dataclass(frozen=True)
class Program:
    """What a checked archive says of itself."""

    torch_version: str  # that wrote it
    schema: tuple[int, int]


def clean_copy(source: Path, target: Path) -> Program:
    """Check the archive `source` and write what is safe in it to `target`.

    Raises InvalidModelError (damaged, or holding what would be executed), UnsupportedError (a pickle, a compiled
    package), ResourceError.
    """
    with file_errors("read", source):
        try:
            with zipfile.ZipFile(source) as archive:
                return _copy(archive, source, target)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
            raise InvalidModelError(
                f"'{source}' is damaged, or no ExportedProgram: {error}", hint=AGAIN
            ) from error


def _copy(archive: zipfile.ZipFile, source: Path, target: Path) -> Program:
    members = _members(archive, source)
    name, graph = _graph(archive, members, source)
    program = _program(graph, source)
    _check(graph, source)
    graph["guards_code"] = []  # Python source that torch would run on every call
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:

        def write(inner: str, data: bytes) -> None:
            out.writestr(f"{target.stem}/{inner}", data)

        for inner in ("archive_format", "archive_version", "byteorder", ".data/version"):
            if inner in members:
                write(inner, archive.read(members[inner])[:64])
        write(f"models/{name}.json", json.dumps(graph).encode())
        write(f"data/sample_inputs/{name}.pt", b"")
        for inner, info in members.items():
            if _CONFIG.match(inner):
                config = _json(archive, info, source)
                _check_payloads(config, source)
                write(inner, json.dumps(config).encode())
            elif _TENSOR.match(inner):
                with (
                    archive.open(info) as read,
                    out.open(f"{target.stem}/{inner}", "w", force_zip64=True) as made,
                ):
                    while piece := read.read(1 << 22):
                        made.write(piece)
    return program


def _members(archive: zipfile.ZipFile, source: Path) -> dict[str, zipfile.ZipInfo]:
    """Members by their path below the archive's one folder; refuses what only other kinds of file hold."""
    members: dict[str, zipfile.ZipInfo] = {}
    size = source.stat().st_size
    for info in archive.infolist():
        folder, slash, inner = info.filename.partition("/")
        inner = inner if slash else folder
        if inner in members:
            raise InvalidModelError(f"'{source}' holds '{inner}' twice")
        if info.file_size > size:  # torch stores, it does not compress
            raise ResourceError(
                f"'{source}': '{inner}' claims {info.file_size:,} bytes in a file of {size:,}"
            )
        members[inner] = info
    if "data.pkl" in members or "constants.pkl" in members:
        raise UnsupportedError(
            f"'{source}' is a pickle (torch.save or TorchScript), which can run any code when it is loaded",
            hint=AGAIN,
        )
    if "serialized_state_dict.pt" in members or "serialized_exported_program.json" in members:
        raise UnsupportedError(
            f"'{source}' was written by an older torch, which kept weights as a pickle",
            hint=f"with a newer torch, {AGAIN}",
        )
    if not any(n.startswith(_PROGRAM) for n in members):
        kind = (
            "a package of compiled code (AOTInductor)"
            if any("aotinductor" in n for n in members)
            else "no program"
        )
        raise UnsupportedError(f"'{source}' holds {kind}, no ExportedProgram", hint=AGAIN)
    for name in members:
        if name.startswith(_WEIGHTS) and not _TENSOR.match(name) and not _CONFIG.match(name):
            raise UnsupportedError(
                f"'{source}': '{name}' is a pickled weight or object, which can run any code when it is loaded",
                hint="programs with custom objects (torchbind) or tensor subclasses have no safe form; "
                + AGAIN,
            )
    return members


def _graph(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], source: Path
) -> tuple[str, dict[str, Any]]:
    programs = [n for n in members if n.startswith(_PROGRAM) and n.endswith(".json")]
    if len(programs) != 1:
        raise UnsupportedError(f"'{source}' holds {len(programs)} programs, expected one", hint=AGAIN)
    name = programs[0].removeprefix(_PROGRAM).removesuffix(".json")
    if not re.fullmatch(r"[\w.-]+", name):
        raise InvalidModelError(f"'{source}' holds a program called {name!r}")
    graph = _json(archive, members[programs[0]], source)
    return name, graph


def _json(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: Path) -> dict[str, Any]:
    if info.file_size > JSON_BYTES:
        raise ResourceError(f"'{source}': '{info.filename}' has more than {JSON_BYTES:,} bytes")
    try:
        found = json.loads(archive.read(info))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"'{source}': '{info.filename}' is damaged: {error}") from error
    if not isinstance(found, dict):
        raise InvalidModelError(f"'{source}': '{info.filename}' is no object")
    return found


def _program(graph: Mapping[str, Any], source: Path) -> Program:
    schema = graph.get("schema_version")
    if not isinstance(schema, dict) or not isinstance(graph.get("graph_module"), dict):
        raise InvalidModelError(
            f"'{source}' holds no program: its graph or its version is missing", hint=AGAIN
        )
    try:
        version = (int(schema["major"]), int(schema.get("minor", 0)))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModelError(f"'{source}': the version of its format is unreadable: {error}") from error
    return Program(str(graph.get("torch_version") or "unknown")[:40], version)


# --- what torch would run ---------------------------------------------------------------------------------


def _check(graph: Mapping[str, Any], source: Path) -> None:
    """Raise InvalidModelError where operators, size expressions or trees are more than data."""
    foreign: dict[str, str] = {}
    for key, value, holder in _walk(graph, source):
        if key == "target" and isinstance(value, str) and "inputs" in holder:
            if not _TARGETS.fullmatch(value) or _FILES.match(value):
                foreign.setdefault(value, str(holder.get("name") or "?"))
        elif key == "expr_str":
            _check_expression(value, source)
        elif key in ("in_spec", "out_spec") and isinstance(value, str) and value:
            _check_tree(value, source)
        elif key == "treespec_namedtuple_fields" and value:
            raise UnsupportedError(
                f"'{source}': inputs or outputs are named tuples: {', '.join(map(str, value))}",
                hint="return a tuple or a dict",
            )
    for name in graph.get("range_constraints") or ():
        _check_expression(name, source)
    if foreign:
        listed = "; ".join(f"{target} (node '{name}')" for target, name in sorted(foreign.items())[:10])
        raise UnsupportedError(
            f"'{source}' calls what is no operator of PyTorch's own: {listed}",
            hint="custom operators have no meaning here: write them with PyTorch's operators, or cut them off",
            nodes=[n for n in foreign.values() if n != "?"],
        )


def _walk(graph: Mapping[str, Any], source: Path) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every key and value of every object inside `graph`."""
    pending: list[tuple[Any, int]] = [(graph, 0)]
    while pending:
        found, depth = pending.pop()
        if depth > DEPTH:
            raise ResourceError(f"'{source}' is nested more than {DEPTH} deep")
        if isinstance(found, dict):
            for key, value in found.items():
                yield key, value, found
                pending.append((value, depth + 1))
        elif isinstance(found, list):
            pending.extend((each, depth + 1) for each in found)


def _check_expression(text: Any, source: Path) -> None:
    try:
        if not isinstance(text, str) or len(text) > 4096:
            raise ValueError("its length")
        for node in ast.walk(ast.parse(text, mode="eval")):
            _check_term(node)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise InvalidModelError(
            f"'{source}': the size expression {str(text)[:80]!r} is no plain arithmetic ({error})"
        ) from error


def _check_term(node: ast.AST) -> None:
    """Raise ValueError where a part of an expression could do more than compute a size."""
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS:
            raise ValueError("a call")
        if node.func.id in _POWERS and not _small(node.args[-1] if node.args else None):
            raise ValueError("a power")
    elif isinstance(node, ast.Constant):
        good = (
            abs(node.value) < 2**63 if isinstance(node.value, int | float)
            else isinstance(node.value, str) and _SYMBOL.fullmatch(node.value)
        )  # fmt: skip
        if not good:
            raise ValueError("a constant")
    elif isinstance(node, ast.Name):
        if node.id not in _FUNCTIONS and not re.fullmatch(r"z?[su]\w{0,3}\d+|oo|int_oo", node.id):
            raise ValueError(f"the name {node.id}")
    elif not isinstance(node, _ARITHMETIC):
        raise ValueError(type(node).__name__)


def _small(node: ast.AST | None) -> bool:
    """Whether an exponent is a whole number that makes no giant."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("Integer", "Rational")
    ):
        return all(_small(a) for a in node.args)
    if isinstance(node, ast.UnaryOp):
        return _small(node.operand)
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) <= 64


def _check_tree(text: str, source: Path) -> None:
    try:
        version, spec = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidModelError(
            f"'{source}': the structure of inputs or outputs is unreadable: {error}"
        ) from error
    del version
    for key, value, holder in _walk({"root": spec}, source):
        if key == "__enum__":
            raise UnsupportedError(f"'{source}': keys of inputs or outputs are an enumeration; use text")
        if key == "type" and "children_spec" in holder and value not in _TREES:
            raise UnsupportedError(
                f"'{source}': inputs or outputs are of the class {value}",
                hint="export a module that takes and returns tensors, tuples, lists and dicts",
            )
        if key == "context" and isinstance(value, str) and "__enum__" in value:
            raise UnsupportedError(f"'{source}': keys of inputs or outputs are an enumeration; use text")


def _check_payloads(config: Mapping[str, Any], source: Path) -> None:
    entries = config.get("config")
    if not isinstance(entries, dict):
        raise InvalidModelError(f"'{source}': the list of its weights is unreadable")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise UnsupportedError(
                f"'{source}': the weight '{name}' is a pickle, which can run any code when it is loaded",
                hint=AGAIN,
            )
        path = str(entry.get("path_name"))
        if not re.fullmatch(r"(weight|tensor)_\d+", path):
            raise InvalidModelError(f"'{source}': the weight '{name}' lies in {path!r}")
