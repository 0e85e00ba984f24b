"""tapeout inspect FILE"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tapeout.commands import options as o

WIDTH = 56  # of a name or a shape; beyond, its end is left out


def register(app: typer.Typer) -> None:
    app.command("inspect", help="Show what is in an ONNX file or an artifact.")(inspect)


def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An ONNX file or an artifact.", show_default=False)
    ],
    as_json: o.Json = False,
) -> None:
    from tapeout import api

    found = api.inspect(file)
    if as_json:
        o.print_json({"schema": "tapeout.inspect/1", "file": str(file), **found})
    else:
        print(text(found, file.name))


def text(found: Mapping[str, Any], name: str) -> str:
    """What is in a file as tables; the facts of a kind of file that is not known here as plain lines."""
    if found.get("format") == "tflite":
        return _tflite(found, name)
    if found.get("format") == "openvino":
        return _openvino(found, name)
    if "operators" in found and "parameters" in found:
        return _model(found, name)
    return facts(found)


def _model(found: Mapping[str, Any], name: str) -> str:
    head = [
        f"{name}: {found['kind']}, {o.bytes_text(found['bytes'])}, {found['nodes']:,} nodes, "
        f"{found['parameters']:,} parameters",
        f"producer {found['producer']}",
        f"sha256 {found['sha256']}",
    ]
    weights = [
        (kind, f"{w['tensors']:,}", f"{w['elements']:,}", o.bytes_text(w["bytes"]))
        for kind, w in found["weights_by_type"].items()
    ]
    operators = [(op, f"{n:,}") for op, n in found["operators"].items()]
    return "\n".join([
        *head,
        *_section("inputs", ("name", "type", "shape"), _tensors(found["inputs"])),
        *_section("outputs", ("name", "type", "shape"), _tensors(found["outputs"])),
        *_section("weights", ("type", "tensors", "elements", "size"), weights),
        *_section("operators", ("operator", "nodes"), operators),
    ])  # fmt: skip


def _tflite(found: Mapping[str, Any], name: str) -> str:
    main = found["subgraphs"][0]
    count = sum(sum(s["operators"].values()) for s in found["subgraphs"])
    lines = [
        f"{name}: TFLite, {o.bytes_text(found['bytes'])}, {count:,} operators, "
        f"{o.bytes_text(found['weight_bytes'])} of weights"
    ]
    lines += [found["description"]] if found["description"] else []
    lines += [f"{key} {value}" for key, value in found["metadata"].items()]
    lines += [
        f"signature {s['key']}: {', '.join(s['inputs'])} -> {', '.join(s['outputs'])}"
        for s in found["signatures"]
    ]
    lines += _section("inputs", ("name", "type", "shape"), _tensors(main["inputs"]))
    lines += _section("outputs", ("name", "type", "shape"), _tensors(main["outputs"]))
    weights = [
        (kind, f"{w['tensors']:,}", o.bytes_text(w["bytes"])) for kind, w in found["weights_by_type"].items()
    ]
    lines += _section("weights", ("type", "tensors", "size"), weights)
    packed = found["packed"]
    if packed["tensors"]:
        lines.append(
            f"{packed['tensors']} weights without their zeros: {o.bytes_text(packed['bytes'])} instead of "
            f"{o.bytes_text(packed['dense_bytes'])}"
        )
    for index, graph in enumerate(found["subgraphs"]):
        rows = [
            (*op.rsplit(" v", 1), f"{n:,}")
            for op, n in sorted(graph["operators"].items(), key=lambda item: (-item[1], item[0]))
        ]
        title = f"operators of subgraph {index} '{graph['name']}'" if index else "operators"
        lines += _section(title, ("operator", "version", "count"), rows)
    return "\n".join(lines)


def _openvino(found: Mapping[str, Any], name: str) -> str:
    lines = [
        f"{name}: OpenVINO, {o.bytes_text(found['bytes'])}, {sum(found['operators'].values()):,} operators, "
        f"{o.bytes_text(found['weight_bytes'])} of weights"
    ]
    for title in ("inputs", "outputs", "states"):
        lines += _section(title, ("name", "type", "shape"), _tensors(found[title]))
    weights = [
        (k, f"{w['tensors']:,}", o.bytes_text(w["bytes"])) for k, w in found["weights_by_type"].items()
    ]
    lines += _section("weights", ("type", "tensors", "size"), weights)
    if "failure" in found:
        return "\n".join([*lines, "", f"on {found['runtime']}: {found['failure']}"])
    low = [
        (_short(w["name"]), w["type"], _short(_plain(w["shape"])), ", ".join(sorted(set(w["executed"]))) or "folded",
         "WIDENED" if w["widened"] else "")
        for w in found["low_bit"]
    ]  # fmt: skip
    lines += _section("weights in few bits", ("name", "type", "shape", "executed in", ""), low)
    layers = [(_short(x["name"]), x["kind"], x["precision"], x["kernel"]) for x in found["layers"]]
    lines += _section(f"layers on {found['runtime']}", ("name", "kind", "precision", "kernel"), layers)
    return "\n".join(lines)


def _tensors(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [(_short(e["name"]), e.get("dtype") or e["type"], _short(_plain(e["shape"]))) for e in entries]


def _section(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A title and a table under it; nothing where there are no rows. Numbers stand to the right."""
    if not rows:
        return []
    table = [header, *rows]
    widths = [max(len(r[i]) for r in table) for i in range(len(header))]
    right = [all(r[i][:1].isdigit() for r in rows) and i > 0 for i in range(len(header))]
    shown = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        for row in table
    ]
    return ["", f"{title}:", *(f"  {line}".rstrip() for line in shown)]


def _short(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def facts(found: Mapping[str, Any], indent: str = "") -> str:
    """Nested facts as lines; lists of facts one line each."""
    lines: list[str] = []
    for key, value in found.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:")
            lines.append(facts(value, indent + "  "))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}:")
            lines += [
                f"{indent}  " + "  ".join(f"{k}={_plain(v)}" for k, v in entry.items()) for entry in value
            ]
        else:
            lines.append(f"{indent}{key}: {_plain(value)}")
    return "\n".join(line for line in lines if line)


def _plain(value: Any) -> str:
    if value is None:
        return "of any rank"
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)
