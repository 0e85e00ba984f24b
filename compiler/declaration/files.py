"""Reads the files of one target: target.toml, what it includes, and the target's own functions."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tapeout.compiler.declaration.parse import (
    COMMON_KEYS,
    ROW_KEYS,
    fault,
    kind,
    make_row,
    nearest,
    only,
    optional_text,
    text,
    texts,
)
from tapeout.compiler.declaration.rows import ANY_PORT, Row
from tapeout.compiler.ir.functions import DECLARED, DOMAIN, parsed
from tapeout.compiler.operators import Interface, function_interface, onnx_interface, table_interface
from tapeout.compiler.quantities import Quantity, Vocabulary

API = 1  # of the plugin interface: what target.toml may say and what `tapeout.sdk` offers
FILE_KEYS = (
    "api", "name", "note", "extends", "include", "operators", "functions", "device", "common", "op",
)  # fmt: skip
INCLUDED_KEYS = ("common", "op")
DEVICE_KEYS = ("note", "label", "facts")


@dataclass
class Source:
    """What the files of one target state, before a device is chosen."""

    name: str
    path: Path
    note: str | None = None
    extends: str | None = None
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    interfaces: dict[str, Interface] = field(default_factory=dict)
    functions: dict[str, ir.Function] = field(default_factory=dict)  # the target's own, by "domain::Name"
    rows: dict[str, list[Row]] = field(default_factory=dict)
    common: list[tuple[tuple[str, ...], tuple[str, ...], Row]] = field(default_factory=list)
    quantities: tuple[Quantity, ...] = ()  # the target's own


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise fault(str(path), f"cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise fault(str(path), f"is not valid TOML: {error}") from error


def read(path: Path, vocabulary: Vocabulary) -> Source:
    """Everything that `path` and what it includes state, checked against the operators' interfaces."""
    top = read_toml(path)
    file = path.name
    _same_api(top.get("api"), str(path))
    only(top, FILE_KEYS, file)
    source = Source(optional_text(top, "name", file) or path.parent.name, path)
    source.quantities = vocabulary.extra
    source.note = optional_text(top, "note", file)
    source.extends = optional_text(top, "extends", file)
    for name, table in _tables(top.get("device", {}), f"{file}: device").items():
        source.devices[name] = dict(only(table, DEVICE_KEYS, f"{file}: device.{name}"))
    if "operators" in top:
        other = _inside(path.parent, text(top["operators"], f"{file}, operators"), file)
        for name, table in read_toml(other).items():
            only(table, ("inputs", "outputs", "attributes"), f"{other.name}: {name}")
            source.interfaces[name] = table_interface(name, table)
    if "functions" in top:
        source.functions = _functions(
            _inside(path.parent, text(top["functions"], f"{file}, functions"), file)
        )
    files: list[tuple[str, dict[str, Any]]] = [(file, top)]
    for pattern in texts(top.get("include", []), f"{file}, include"):
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise fault(f"{file}, include", f"'{pattern}' leaves the folder of the declaration")
        found = sorted(p for p in path.parent.glob(pattern) if p != path)
        if not found:
            raise fault(f"{file}, include", f"no file matches '{pattern}'")
        for each in found:
            _inside(path.parent, str(each.relative_to(path.parent)), file)
            table = read_toml(each)
            name = each.relative_to(path.parent).as_posix()
            only(table, INCLUDED_KEYS, name)
            files.append((name, table))
    for name, table in files:
        _rows(name, table, source, vocabulary)
    for ops, but, row in source.common:
        _common(ops, but, row, source, vocabulary)
    return source


def _same_api(stated: Any, where: str) -> None:
    """Said before anything else is read: what another version has added is no misspelt key."""
    if stated is None:
        raise fault(where, "states no api", f"its first line is: api = {API}")
    if isinstance(stated, bool) or not isinstance(stated, int):
        raise fault(where, f"api is {stated!r}, expected the number {API}")
    if stated != API:
        older = stated > API
        raise fault(
            where,
            f"is written for version {stated} of the plugin interface, this tapeout has version {API}",
            "install a newer tapeout" if older else "install a newer version of the plugin",
        )


def _functions(path: Path) -> dict[str, ir.Function]:
    """The functions that a file in ONNX's text syntax holds, by "domain::Name"."""
    try:
        found = parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise fault(str(path), f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise fault(path.name, f"is not ONNX text: {str(error).strip().splitlines()[0]}") from error
    if not found:
        raise fault(path.name, "holds no function")
    for function in found:
        where = f"{path.name}: {function.name}"
        if function.domain in ("", "ai.onnx", DOMAIN):
            raise fault(where, f"the domain '{function.domain}' is not the target's own")
        for node in function:
            if node.domain in ("", "ai.onnx") and onnx_interface(node.op_type) is None:
                raise fault(where, f"unknown operator '{node.op_type}'", nearest(node.op_type, _onnx_names()))
        DECLARED.setdefault(function.identifier(), function)
    return {f"{f.domain}::{f.name}": f for f in found}


def applies(op: str, ops: Iterable[str], but: Iterable[str]) -> bool:
    """Whether a common row is for an operator: wildcards in both lists."""
    return any(fnmatchcase(op, p) for p in ops) and not any(fnmatchcase(op, p) for p in but)


def _common(
    ops: tuple[str, ...], but: tuple[str, ...], row: Row, source: Source, vocabulary: Vocabulary
) -> None:
    """What a common row names must be known to at least one operator that it is for."""
    where = f"{row.file}: common"
    for pattern in (*ops, *but):
        if not any(fnmatchcase(op, pattern) for op in source.rows):
            raise fault(where, f"no row is for '{pattern}'", nearest(pattern, source.rows))
    interfaces = [interface_of(op, source, row.file) for op in source.rows if applies(op, ops, but)]
    if None in interfaces:
        return
    ports = {ANY_PORT, *(p for i in interfaces if i for p in i.ports)}
    for port in (*row.ports, *row.rank, *row.same_scale):
        if port not in ports:
            raise fault(where, f"unknown port '{port}'", nearest(port, ports))
    for limit in row.limits:
        if not any(vocabulary.resolve(limit.name, i) for i in interfaces):
            names = {n for i in interfaces for n in vocabulary.names(i)}
            raise fault(where, f"unknown quantity '{limit.name}'", nearest(limit.name, names))


def _tables(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise fault(where, f"expected tables, found {kind(value)}")
    return value


def _inside(folder: Path, name: str, file: str) -> Path:
    found = (folder / name).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise fault(file, f"'{name}' leaves the folder of the declaration")
    return found


def interface_of(op: str, source: Source, file: str) -> Interface | None:
    """The interface of a declared operator; None for a function, which models bring."""
    if op in source.interfaces:
        return source.interfaces[op]
    if op in source.functions:
        return function_interface(source.functions[op])
    if "::" in op:
        own = [name for name in source.functions if name.partition("::")[0] == op.partition("::")[0]]
        if own:
            raise fault(f"{file}: op.{op}", f"unknown function '{op}'", nearest(op, own))
        return None
    found = onnx_interface(op) if not source.interfaces else None
    if found is None:
        known = source.interfaces or _onnx_names()
        raise fault(f"{file}: op.{op}", f"unknown operator '{op}'", nearest(op, known))
    return found


def _onnx_names() -> set[str]:
    import onnx

    return {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}


def _rows(file: str, table: Mapping[str, Any], source: Source, vocabulary: Vocabulary) -> None:
    for op, rows in _tables(table.get("op", {}), f"{file}: op").items():
        if not isinstance(rows, list):
            raise fault(
                f"{file}: op.{op}", f"expected rows, found {kind(rows)}", f"a row begins with [[op.{op}]]"
            )
        interface = interface_of(op, source, file)
        mine = source.rows.setdefault(op, [])
        for row in rows:
            mine.append(
                make_row(row, ROW_KEYS, op, len(mine) + 1, file, interface, vocabulary, source.devices)
            )
    common = table.get("common", [])
    if not isinstance(common, list):
        raise fault(f"{file}: common", f"expected a list of tables, found {kind(common)}")
    for each in common:
        row = make_row(each, COMMON_KEYS, "*", 0, file, None, vocabulary, source.devices)
        source.common.append((texts(each.get("ops", ["*"]), file), texts(each.get("except", []), file), row))
