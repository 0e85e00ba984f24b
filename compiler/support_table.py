"""A declaration as a page for people: operators, what they become, types and limits, and what has no row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from tapeout.compiler.declaration import Bound, Declaration, Limit, PortRule, Row
from tapeout.compiler.declaration.rows import ANY_PORT
from tapeout.compiler.ir.evaluate import RANDOM
from tapeout.compiler.operators import onnx_interface
from tapeout.compiler.pipeline import Pass
from tapeout.compiler.quantities import Vocabulary

EVERY = "every tensor"
PLAIN = "no kernel, and no rule that writes it out"


def support_table(declaration: Declaration, passes: Sequence[Pass] = ()) -> str:
    """Markdown, made only from the rows, and from the rules of the target's `passes` where given; the same rows and
    rules give the same page."""
    parts = [f"# What {declaration.label} takes", ""]
    if declaration.source.note:
        parts += [sentence(declaration.source.note), ""]
    parts += [
        "Made from the target's declaration by `compiler/support_table.py`, not edited by hand. Rows of one",
        "operator are alternatives; everything in a row holds at once. What matches no row is refused, and",
        "the nearest row says why. Operators of the domain `tapeout` are made by the target's own passes.",
        "",
    ]
    shared = [(ops, but, row) for ops, but, row in declaration.source.common if row.op == "*"]
    if shared:
        parts += ["## For many operators", "", "| operators | limits |", "|---|---|"]
        for ops, but, row in shared:
            names = ", ".join("all" if o == "*" else f"`{o}`" for o in ops)
            names += f" but {', '.join(f'`{b}`' for b in but)}" if but else ""
            parts.append(f"| {names} | {cell([*types(row), *limits(row)])} |")
        parts.append("")
    for family, rows in families(declaration).items():
        parts += [f"## {family}", "", "| operator | becomes | types | limits |", "|---|---|---|---|"]
        for op, row, first in rows:
            name = f"`{op}`" if first else ""
            lower = f"`{row.lower}`" if row.lower else ""
            parts.append(f"| {name} | {lower} | {cell(types(row))} | {cell(limits(row))} |")
        parts.append("")
    without = missing(declaration)
    if without and passes:
        parts += without_rows(declaration, without, passes)
    elif without:
        parts += [
            "## Without a row",
            "",
            "Taken only where a pass has rewritten them into operators above; refused by name otherwise:",
            ", ".join(f"`{op}`" for op in without) + ".",
            "",
        ]
    return "\n".join(parts)


def without_rows(declaration: Declaration, without: Sequence[str], passes: Sequence[Pass]) -> list[str]:
    """What happens to operators that have no row: the rule that writes them out, or why they are refused."""
    rules = algebra(passes)
    written, refused = [], []
    for op in without:
        if f"tapeout::{op}NHWC" in declaration.rows:
            written.append((op, "ChannelsLast", f"{op}(x) -> tapeout::{op}NHWC(Transpose(x))"))
        elif op in rules and reason(op) == PLAIN:
            written.append((op, *rules[op]))
        else:
            refused.append((op, reason(op)))
    parts = [
        "## Without a row: written out",
        "",
        "Rewritten into operators above by the rule named, where its conditions hold, and by what follows for the",
        "operators that it makes. What a rule leaves alone is refused.",
        "",
        "| operators | rule | algebra |",
        "|---|---|---|",
        *(
            f"| {', '.join(f'`{op}`' for op, *other in written if other == [rule, text])} | {rule} | `{cell([text])}` |"
            for rule, text in dict.fromkeys((rule, text) for _, rule, text in written)
        ),
        "",
        "## Without a row: refused",
        "",
        "Unless their result is known before running, for then they are constants.",
        "",
        "| operators | why |",
        "|---|---|",
    ]
    for why in dict.fromkeys(w for _, w in refused):
        parts.append(f"| {', '.join(f'`{op}`' for op, w in refused if w == why)} | {why} |")
    return [*parts, ""]


def algebra(passes: Sequence[Pass]) -> dict[str, tuple[str, str]]:
    """For each operator the rule that writes it out, and its algebra: the first line of the docstring of that one
    of the rules that start from it which says most of it."""
    found: dict[str, tuple[int, str, str]] = {}
    for step in passes:
        for rule in getattr(step, "rules", ()):
            rule = getattr(rule, "rule", rule)
            text = " ".join((rule.__doc__ or "").partition("\n\n")[0].split()).rstrip(".")
            if "->" not in text:
                continue
            simplifies = ".canonicalize." in type(rule).__module__
            for op in rule.ops:
                if f"{op}(" in text:
                    rank = 0
                elif re.search(rf"\b{op}\b", text):
                    rank = 3 if simplifies else 1
                elif text.startswith("Op(x, ...)"):
                    rank = 4
                elif simplifies or text.startswith("Op("):
                    continue  # for operators of many kinds, which stay what they are
                else:
                    rank = 2
                if op not in found or rank < found[op][0]:
                    found[op] = rank, type(rule).__name__, text
    return {op: (name, text) for op, (_, name, text) in found.items()}


def reason(op: str) -> str:
    """Why an operator without a row and without a rule is refused."""
    import onnx

    schema = onnx.defs.get_schema(op)
    kinds = {t for port in (*schema.inputs, *schema.outputs) for t in port.types}
    if any(t.startswith(("seq", "optional")) for t in kinds):
        return "sequences and optional values: a file of tensors has none"
    if any(set(port.types) == {"tensor(string)"} for port in (*schema.inputs, *schema.outputs)):
        return "text"
    if op in RANDOM:
        return "random: no two runs agree"
    return PLAIN


def quantities_table(vocabulary: Vocabulary) -> str:
    """Every quantity that a row may bound, from the docstrings, as Markdown."""
    parts = [
        "# Quantities",
        "",
        "What a row may bound by name. Made from the docstrings in `compiler/quantities/`, not by hand.",
        "A name that ends in `.*` takes an argument: `attr.mode`, `X.dim.-1`. Where a quantity is not known",
        'before running, a bound does not hold unless it says `unknown = "ok"`.',
        "",
    ]
    for title, prefix, table in (
        ("Of a node", "", vocabulary.calls),
        ("Of a port", "PORT.", vocabulary.ports),
    ):
        parts += [f"## {title}", "", "| name | what it is |", "|---|---|"]
        parts += [
            f"| `{prefix}{name}` | {cell([' '.join(q.doc.split())])} |" for name, q in sorted(table.items())
        ]
        parts.append("")
    return "\n".join(parts)


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def families(declaration: Declaration) -> dict[str, list[tuple[str, Row, bool]]]:
    """Rows by the file that they stand in, operators by name; True where an operator begins."""
    found: dict[str, list[tuple[str, Row, bool]]] = {}
    for op in sorted(declaration.rows, key=lambda o: o.removeprefix("tapeout::").lower()):
        before = None
        for row in declaration.rows[op]:
            family = PurePosixPath(row.file).stem.replace("_", " ").capitalize()
            found.setdefault(family, []).append((op, row, before != family))
            before = family
    return dict(sorted(found.items()))


def missing(declaration: Declaration) -> list[str]:
    """Operators of ONNX without a row; none where a declaration has its own operators or narrows another."""
    if declaration.source.interfaces or declaration.parent is not None:
        return []
    import onnx

    standard = {s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated}
    return sorted(
        op for op in standard - set(declaration.rows) - {"Constant"} if onnx_interface(op) is not None
    )


def types(row: Row) -> list[str]:
    """ "T: float32, int32" for each type variable or port; the name is left out where it is the only one."""
    if len(row.types) == 1 and next(iter(row.types)) in ("T", ANY_PORT):
        return [", ".join(next(iter(row.types.values())))]
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, allowed in row.types.items():
        alike.setdefault(allowed, []).append(EVERY if name == ANY_PORT else name)
    return [f"{', '.join(names)}: {', '.join(allowed)}" for allowed, names in alike.items()]


def limits(row: Row) -> list[str]:
    """Everything else that a row demands, and its note."""
    found = [demand for name, port in row.ports.items() for demand in port_words(name, port)]
    found += [f"rank of {EVERY if p == ANY_PORT else p} {b.words()}" for p, b in row.rank.items()]
    found += [limit_words(limit) for limit in row.limits]
    if row.same_scale:
        found.append(f"one scale for {', '.join(row.same_scale)}")
    if row.bound.quanta != 1:
        found.append(f"up to {row.bound.quanta} quanta off")
    alike: dict[int, list[str]] = {}
    for name, bits in row.exact.items():
        alike.setdefault(bits, []).append(name)
    found += [f"{', '.join(names)} exact below 2^{bits}" for bits, names in alike.items()]
    if row.devices:
        found.append(f"on {', '.join(row.devices)} only")
    if row.note:
        found.append(f"({row.note})")
    return found


def port_words(name: str, port: PortRule) -> Iterable[str]:
    """What a row demands of one port."""
    what = EVERY if name == ANY_PORT else name
    if port.role in ("weight", "bias", "const"):
        yield f"{what} constant"
    if port.dtypes:
        yield f"{what} stored as {' or '.join(port.dtypes)}"
    if port.axis is not None:
        yield f"{what} quantized along axis {port.axis}"
    if port.per_tensor:
        yield f"one scale for {what}"
    if port.symmetric:
        yield f"zero point of {what} 0"
    if port.zp is not None:
        yield f"zero point of {what} {port.zp}"
    if port.scale is not None:
        yield f"scale of {what} {port.scale}"
    if port.rank is not None:
        yield f"rank of {what} {port.rank.words()}"
    if port.optional is False:
        yield f"{what} present"


def limit_words(limit: Limit) -> str:
    """ "stride at most 3"; "no B" and "B" for what must be absent or present."""
    if isinstance(limit.bound.equal, bool):
        return limit.label if limit.bound.equal else f"no {limit.label}"
    return f"{limit.label} {words(limit.bound)}"


def words(bound: Bound) -> str:
    """The bound, with what happens to unknown values."""
    return bound.words() + (", or not known" if bound.unknown_ok else "")


def cell(parts: list[str]) -> str:
    """Text that stays inside its cell of a table."""
    return "; ".join(parts).replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """`python -m tapeout.compiler.support_table TARGET [DEVICE]` prints the page."""
    import sys

    from tapeout.compiler.target import Request, target

    found = target(sys.argv[1])
    device = sys.argv[2] if len(sys.argv) > 2 else found.devices[0]
    print(support_table(found.declaration(device), found.passes(Request(device=device))), end="")


if __name__ == "__main__":
    main()
