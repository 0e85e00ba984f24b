"""Reads target.toml strictly: what is not understood is an error that names the file, the row, the key and
the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from tapeout.compiler.declaration.rows import ANY_PORT, Bound, Limit, PortRule, Row, Tolerance
from tapeout.compiler.errors import VendorToolError
from tapeout.compiler.operators import (
    DTYPES,
    Activation,
    Interface,
)
from tapeout.compiler.quantities import Vocabulary

ROLES = ("act", "weight", "bias", "const")
LAYOUTS = ("NCHW", "NHWC")
ROW_KEYS = (
    "lower", "ports", "types", "rank", "quantity", "same_scale", "fuses", "layout", "bound", "exact",
    "fix", "note", "devices",
)  # fmt: skip
COMMON_KEYS = (
    "ops", "except", "ports", "types", "rank", "quantity", "same_scale", "exact", "fix", "note", "devices",
)  # fmt: skip
PORT_KEYS = (
    *(
        "role",
        "dtype",
        "axis",
        "per_tensor",
        "symmetric",
        "scale",
        "scale_above",
        "zp",
        "rank",
        "optional",
        "fix",
    ),
)
ACTIVATIONS = ("Relu", "Clip")
INTEGERS = tuple(n for n in DTYPES if n.startswith(("int", "uint")))
BOUND_KEYS = ("min", "max", "in", "not_in", "multiple_of", "equal", "unknown", "fix")


def fault(where: str, message: str, hint: str | None = None) -> VendorToolError:
    return VendorToolError(f"declaration {where}: {message}", hint=hint)


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """ "did you mean 'stride.max'?", or the valid names where none is near and they are few."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid: {', '.join(names)}" if 0 < len(names) <= 20 else None


def only(table: Any, keys: Iterable[str], where: str) -> Mapping[str, Any]:
    if not isinstance(table, dict):
        raise fault(where, f"expected a table, found {kind(table)}")
    keys = tuple(keys)
    for key in table:
        if key not in keys:
            raise fault(where, f"unknown key '{key}'", nearest(key, keys))
    return table


def kind(value: Any) -> str:
    return {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a table",
    }.get(type(value), type(value).__name__)


def text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise fault(where, f"expected a string, found {kind(value)}")
    return value


def optional_text(table: Mapping[str, Any], key: str, where: str) -> str | None:
    return text(table[key], f"{where}, {key}") if key in table else None


def texts(value: Any, where: str) -> tuple[str, ...]:
    """A string or a list of strings."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise fault(where, f"expected a string or a list of strings, found {kind(value)}")
    return tuple(text(v, where) for v in value)


def _dtypes(value: Any, where: str) -> tuple[str, ...]:
    names = texts(value, where)
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
    only(table, BOUND_KEYS, where)
    for key in ("min", "max"):
        if key in table and (isinstance(table[key], bool) or not isinstance(table[key], int | float)):
            raise fault(where, f"'{key}' expects a number, found {kind(table[key])}")
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
        fix=optional_text(table, "fix", where),
    )


def _known_port(name: str, interface: Interface | None, where: str) -> None:
    if interface is not None and name != ANY_PORT and name not in interface.ports:
        raise fault(where, f"unknown port '{name}' of {interface.name}", nearest(name, interface.ports))


def _above(value: Any, interface: Interface | None, where: str) -> tuple[str, float]:
    """ "X/128": the port, and what its scale is multiplied by."""
    port, slash, number = str(value).partition("/")
    if not slash or not number.strip().isdigit() or int(number) < 1:
        raise fault(where, 'scale_above expects a port over a whole number, such as "X/128"')
    _known_port(port.strip(), interface, f"{where}, scale_above")
    return port.strip(), 1 / int(number)


def _port(value: Any, interface: Interface | None, where: str) -> PortRule:
    table = only(value, PORT_KEYS, where)
    role = optional_text(table, "role", where)
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
        scale_above=_above(table["scale_above"], interface, where) if "scale_above" in table else None,
        rank=_bound(table["rank"], f"{where}, rank") if "rank" in table else None,
        optional=table.get("optional"),
        fix=optional_text(table, "fix", where),
    )


def _tolerance(value: Any, where: str) -> Tolerance:
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"quanta": value}
    table = only(value, ("quanta", "rate"), where)
    quanta, rate = table.get("quanta", 1), table.get("rate", 1.0)
    if isinstance(quanta, bool) or not isinstance(quanta, int) or quanta < 0:
        raise fault(where, "'quanta' expects an integer, 0 or more")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise fault(where, "'rate' expects a share between 0 and 1")
    return Tolerance(quanta, float(rate))


def _exact(value: Any, where: str) -> dict[str, int]:
    """{int64 = 31}: integers of the type are exact below 2^31 in magnitude."""
    table = only(value, INTEGERS, where)
    for name, bits in table.items():
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 64:
            raise fault(where, f"'{name}' expects a number of bits, 1 to 64, found {bits!r}")
    return dict(table)


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
    only(table, keys, where)

    def tables(key: str) -> Mapping[str, Any]:
        found = table.get(key, {})
        if not isinstance(found, dict):
            raise fault(f"{where}, {key}", f"expected a table, found {kind(found)}")
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
    same_scale = texts(table.get("same_scale", []), f"{where}, same_scale")
    for name in same_scale:
        _known_port(name, interface, f"{where}, same_scale")
    fuses = tuple(_activation(a, f"{where}, fuses") for a in texts(table.get("fuses", []), f"{where}, fuses"))
    layout = optional_text(table, "layout", where)
    if layout is not None and layout not in LAYOUTS:
        raise fault(where, f"unknown layout '{layout}'", nearest(layout, LAYOUTS))
    mine = texts(table.get("devices", []), f"{where}, devices")
    for device in mine:
        if device not in devices:
            raise fault(f"{where}, devices", f"unknown device '{device}'", nearest(device, devices))
    return Row(
        op=op, index=index, file=file, lower=optional_text(table, "lower", where), ports=ports, types=types,
        rank=rank, limits=tuple(limits), same_scale=same_scale, fuses=fuses, layout=layout,
        bound=_tolerance(table.get("bound", {}), f"{where}, bound"),
        exact=_exact(table.get("exact", {}), f"{where}, exact"), fix=optional_text(table, "fix", where),
        note=optional_text(table, "note", where), devices=mine,
    )  # fmt: skip
