"""Reads target.toml strictly: what is not understood is an error that names the file, the row, the key and
the nearest valid name."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tapeout.compiler.declaration.rows import ANY_PORT, Bound, Limit, PortRule, Row, Tolerance
from tapeout.compiler.errors import VendorToolError
from tapeout.compiler.operators import DTYPES, Activation, Interface, onnx_interface, table_interface
from tapeout.compiler.quantities import Vocabulary

API = 1
ROLES = ("act", "weight", "bias", "const")
LAYOUTS = ("NCHW", "NHWC")
FILE_KEYS = ("api", "name", "note", "extends", "include", "operators", "device", "common", "op")
INCLUDED_KEYS = ("common", "op")
DEVICE_KEYS = ("note", "label", "facts")
ROW_KEYS = (
    "lower", "ports", "types", "rank", "quantity", "same_scale", "fuses", "layout", "bound", "fix", "note", "devices",
)  # fmt: skip
COMMON_KEYS = ("ops", "except", "ports", "types", "rank", "quantity", "same_scale", "fix", "note", "devices")
PORT_KEYS = ("role", "dtype", "axis", "per_tensor", "symmetric", "scale", "zp", "rank", "optional", "fix")
ACTIVATIONS = ("Relu", "Clip")
BOUND_KEYS = ("min", "max", "in", "not_in", "multiple_of", "equal", "unknown", "fix")


@dataclass
class Source:
    """What the files of one target state, before a device is chosen."""

    name: str
    path: Path
    note: str | None = None
    extends: str | None = None
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    interfaces: dict[str, Interface] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    common: list[tuple[tuple[str, ...], tuple[str, ...], Row]] = field(default_factory=list)


def fault(where: str, message: str, hint: str | None = None) -> VendorToolError:
    return VendorToolError(f"declaration {where}: {message}", hint=hint)


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """ "did you mean 'stride.max'?", or the valid names where none is near and they are few."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid: {', '.join(names)}" if 0 < len(names) <= 20 else None


def _only(table: Any, keys: Iterable[str], where: str) -> Mapping[str, Any]:
    if not isinstance(table, dict):
        raise fault(where, f"expected a table, found {_kind(table)}")
    keys = tuple(keys)
    for key in table:
        if key not in keys:
            raise fault(where, f"unknown key '{key}'", nearest(key, keys))
    return table


def _kind(value: Any) -> str:
    return {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a table",
    }.get(type(value), type(value).__name__)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise fault(where, f"expected a string, found {_kind(value)}")
    return value


def _optional_text(table: Mapping[str, Any], key: str, where: str) -> str | None:
    return _text(table[key], f"{where}, {key}") if key in table else None


def _texts(value: Any, where: str) -> tuple[str, ...]:
    """A string or a list of strings."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise fault(where, f"expected a string or a list of strings, found {_kind(value)}")
    return tuple(_text(v, where) for v in value)


def _dtypes(value: Any, where: str) -> tuple[str, ...]:
    names = _texts(value, where)
    for name in names:
        inner = name
        while inner.endswith(")") and inner.startswith(("seq(", "optional(")):
            inner = inner[inner.index("(") + 1 : -1]
        if inner not in DTYPES:
            raise fault(where, f"unknown type '{name}'", nearest(inner, DTYPES))
    return names


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list) else value


def _bound(value: Any, where: str) -> Bound:
    if isinstance(value, list):
        value = {"in": value}
    elif not isinstance(value, dict):
        value = {"equal": value}
    table = value
    for key, inner in table.items():
        if isinstance(inner, dict) and key not in BOUND_KEYS:
            name = where.rpartition(", ")[2]
            raise fault(
                where, f"unknown bound '{key}'", f'a name with dots is quoted: quantity."{name}.{key}"'
            )
    _only(table, BOUND_KEYS, where)
    for key in ("min", "max"):
        if key in table and (isinstance(table[key], bool) or not isinstance(table[key], int | float)):
            raise fault(where, f"'{key}' expects a number, found {_kind(table[key])}")
    multiple = table.get("multiple_of")
    if multiple is not None and (
        isinstance(multiple, bool) or not isinstance(multiple, int) or multiple <= 0
    ):
        raise fault(where, "'multiple_of' expects a positive integer")
    for key in ("in", "not_in"):
        if key in table and (not isinstance(table[key], list) or not table[key]):
            raise fault(where, f"'{key}' expects a list with at least one value")
    if table.get("unknown", "refuse") not in ("ok", "refuse"):
        raise fault(where, f"'unknown' is '{table['unknown']}'", "valid: ok, refuse")
    if not set(table) - {"fix", "unknown"}:
        raise fault(where, "bounds nothing", f"valid: {', '.join(BOUND_KEYS)}")
    return Bound(
        min=table.get("min"),
        max=table.get("max"),
        among=_plain(table["in"]) if "in" in table else None,
        outside=_plain(table["not_in"]) if "not_in" in table else None,
        multiple_of=multiple,
        equal=_plain(table.get("equal")),
        unknown_ok=table.get("unknown") == "ok",
        fix=_optional_text(table, "fix", where),
    )


def _known_port(name: str, interface: Interface | None, where: str) -> None:
    if interface is not None and name != ANY_PORT and name not in interface.ports:
        raise fault(where, f"unknown port '{name}' of {interface.name}", nearest(name, interface.ports))


def _port(value: Any, interface: Interface | None, where: str) -> PortRule:
    table = _only(value, PORT_KEYS, where)
    role = _optional_text(table, "role", where)
    if role is not None and role not in ROLES:
        raise fault(where, f"unknown role '{role}'", nearest(role, ROLES))
    for key, kind in (
        ("axis", int),
        ("zp", int),
        ("symmetric", bool),
        ("per_tensor", bool),
        ("optional", bool),
    ):
        if key in table and type(table[key]) is not kind:
            raise fault(where, f"'{key}' expects {'an integer' if kind is int else 'true or false'}")
    scale = table.get("scale")
    if isinstance(scale, str):
        for port in scale.split("*"):
            _known_port(port.strip(), interface, f"{where}, scale")
    elif scale is not None:
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
            raise fault(where, "'scale' expects a positive number or a product of ports such as \"X*W\"")
        scale = float(scale)
    return PortRule(
        role=role,
        dtypes=_dtypes(table["dtype"], f"{where}, dtype") if "dtype" in table else (),
        axis=table.get("axis"),
        per_tensor=table.get("per_tensor", False),
        symmetric=table.get("symmetric"),
        scale=scale,
        zp=table.get("zp"),
        rank=_bound(table["rank"], f"{where}, rank") if "rank" in table else None,
        optional=table.get("optional"),
        fix=_optional_text(table, "fix", where),
    )


def _tolerance(value: Any, where: str) -> Tolerance:
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"quanta": value}
    table = _only(value, ("quanta", "rate"), where)
    quanta, rate = table.get("quanta", 1), table.get("rate", 1.0)
    if isinstance(quanta, bool) or not isinstance(quanta, int) or quanta < 0:
        raise fault(where, "'quanta' expects an integer, 0 or more")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise fault(where, "'rate' expects a share between 0 and 1")
    return Tolerance(quanta, float(rate))


def _activation(text: str, where: str) -> Activation:
    """ "Relu", or "Clip(0, 6)"; a bound that is left out is none."""
    name, bracket, inside = text.partition("(")
    if name not in ACTIVATIONS or (bracket and (name != "Clip" or not inside.endswith(")"))):
        raise fault(where, f"unknown activation '{text}'", "valid: Relu, Clip(0, 6)")
    bounds = [b.strip() for b in inside[:-1].split(",")] if bracket else []
    try:
        low, high = (float(b) if b else None for b in [*bounds, "", ""][:2])
    except ValueError:
        raise fault(where, f"'{text}': the bounds are no numbers", "as in Clip(0, 6)") from None
    return Activation(name, low, high)


def make_row(
    table: Any,
    keys: Iterable[str],
    op: str,
    index: int,
    file: str,
    interface: Interface | None,
    vocabulary: Vocabulary,
    devices: Iterable[str],
) -> Row:
    """One checked row; `interface` is None where the operator is known only to the models that bring it."""
    where = f"{file}: op.{op}, row {index}" if index else f"{file}: common"
    _only(table, keys, where)

    def tables(key: str) -> Mapping[str, Any]:
        found = table.get(key, {})
        if not isinstance(found, dict):
            raise fault(f"{where}, {key}", f"expected a table, found {_kind(found)}")
        return found

    ports = {}
    for name, value in tables("ports").items():
        _known_port(name, interface, f"{where}, ports")
        ports[name] = _port(value, interface, f"{where}, ports.{name}")
    types = {}
    for name, value in tables("types").items():
        if interface is not None:
            valid = (*interface.variables, *interface.ports, ANY_PORT)
            valid = valid if interface.variables else (*valid, "T")
            if name not in valid:
                raise fault(
                    f"{where}, types",
                    f"unknown type variable or port '{name}' of {interface.name}",
                    nearest(name, valid),
                )
        types[name] = _dtypes(value, f"{where}, types.{name}")
    rank = {}
    for name, value in tables("rank").items():
        _known_port(name, interface, f"{where}, rank")
        rank[name] = _bound(value, f"{where}, rank.{name}")
    limits = []
    for name, value in tables("quantity").items():
        resolved = vocabulary.resolve(name, interface)
        if resolved is None:
            hint = nearest(name, vocabulary.names(interface))
            if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
                hint = f'a name with dots is quoted: quantity."{name}.{next(iter(value))}"'
            raise fault(f"{where}, quantity", f"unknown quantity '{name}' of {op}", hint)
        limits.append(Limit(name, resolved[0], resolved[1], _bound(value, f"{where}, quantity, {name}")))
    same_scale = _texts(table.get("same_scale", []), f"{where}, same_scale")
    for name in same_scale:
        _known_port(name, interface, f"{where}, same_scale")
    fuses = tuple(
        _activation(a, f"{where}, fuses") for a in _texts(table.get("fuses", []), f"{where}, fuses")
    )
    layout = _optional_text(table, "layout", where)
    if layout is not None and layout not in LAYOUTS:
        raise fault(where, f"unknown layout '{layout}'", nearest(layout, LAYOUTS))
    mine = _texts(table.get("devices", []), f"{where}, devices")
    for device in mine:
        if device not in devices:
            raise fault(f"{where}, devices", f"unknown device '{device}'", nearest(device, devices))
    return Row(
        op=op, index=index, file=file, lower=_optional_text(table, "lower", where), ports=ports, types=types,
        rank=rank, limits=tuple(limits), same_scale=same_scale, fuses=fuses, layout=layout,
        bound=_tolerance(table.get("bound", {}), f"{where}, bound"), fix=_optional_text(table, "fix", where),
        note=_optional_text(table, "note", where), devices=mine,
    )  # fmt: skip


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
    _only(top, FILE_KEYS, file)
    if top.get("api") != API:
        raise fault(file, f"api is {top.get('api', 'not stated')}, expected {API}")
    source = Source(_optional_text(top, "name", file) or path.parent.name, path)
    source.note = _optional_text(top, "note", file)
    source.extends = _optional_text(top, "extends", file)
    for name, table in _tables(top.get("device", {}), f"{file}: device").items():
        source.devices[name] = dict(_only(table, DEVICE_KEYS, f"{file}: device.{name}"))
    if "operators" in top:
        other = _inside(path.parent, _text(top["operators"], f"{file}, operators"), file)
        for name, table in read_toml(other).items():
            _only(table, ("inputs", "outputs", "attributes"), f"{other.name}: {name}")
            source.interfaces[name] = table_interface(name, table)
    files: list[tuple[str, dict[str, Any]]] = [(file, top)]
    for pattern in _texts(top.get("include", []), f"{file}, include"):
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise fault(f"{file}, include", f"'{pattern}' leaves the folder of the declaration")
        found = sorted(p for p in path.parent.glob(pattern) if p != path)
        if not found:
            raise fault(f"{file}, include", f"no file matches '{pattern}'")
        for each in found:
            _inside(path.parent, str(each.relative_to(path.parent)), file)
            table = read_toml(each)
            name = each.relative_to(path.parent).as_posix()
            _only(table, INCLUDED_KEYS, name)
            files.append((name, table))
    for name, table in files:
        _rows(name, table, source, vocabulary)
    for ops, but, row in source.common:
        _common(ops, but, row, source, vocabulary)
    return source


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
        raise fault(where, f"expected tables, found {_kind(value)}")
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
    if "::" in op:
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
                f"{file}: op.{op}", f"expected rows, found {_kind(rows)}", f"a row begins with [[op.{op}]]"
            )
        interface = interface_of(op, source, file)
        mine = source.rows.setdefault(op, [])
        for row in rows:
            mine.append(
                make_row(row, ROW_KEYS, op, len(mine) + 1, file, interface, vocabulary, source.devices)
            )
    common = table.get("common", [])
    if not isinstance(common, list):
        raise fault(f"{file}: common", f"expected a list of tables, found {_kind(common)}")
    for each in common:
        row = make_row(each, COMMON_KEYS, "*", 0, file, None, vocabulary, source.devices)
        source.common.append(
            (_texts(each.get("ops", ["*"]), file), _texts(each.get("except", []), file), row)
        )
