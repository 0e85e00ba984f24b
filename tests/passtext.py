"""Text tests of passes: graph before, passes, graph after, in ONNX's text syntax, each beside a numeric
check.

A test module has its cases in text files beside it and three lines of Python:

    from tests.passtext import Case, cases, check

    @pytest.mark.parametrize("case", cases(__file__, "*.txt"), ids=str)
    def test_text(case: Case, bless: bool) -> None:
        check(case, {"identities": (IDENTITIES,), "canonicalize": CANONICALIZE}, bless)

A file holds one or more cases:

    === a transpose and its inverse go            a title; starts a case
    passes: identities                            names in the dict given to `check`, run in this order
    range x: -1 1                                 optional: uniform numbers (default -1.5 1.5, ints 0 5)
    values x: nan inf -0.0 1                      optional: draw from these instead
    dims: N=2 M=5                                 optional, repeatable: sizes (default: two runs on primes)
    tolerance: 1e-5                               optional: max |a-b| / max |ref|
    --- before
    agraph (float[N,3] x) => (float[N,3] y)
    <float[3] bias, float[3] scale = {1, 2, 3}>   a name without `= {...}` that no node makes is random data
    {
       t = Mul (x, scale)
       y = Add (t, bias)
    }
    --- after
    ...                                           what came out; `pytest --bless` writes it
    --- declined
    RuleName: the reason                          optional section: what was recognised and left

Names that are no identifiers are quoted: `"conv~1" = Relu (x)`. A text that begins with `<` is a whole model
(for functions of one's own or an older opset). Names with `~` are renumbered in order of appearance. The
numeric check runs the graph as parsed and the graph after the passes in ONNX Runtime without optimizations
(onnx.reference where it has no kernel) on the same data, and compares every output; names, dtypes and shapes
of inputs and outputs too.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import parser

from tapeout.compiler import pipeline
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import set_origin

Arrays = dict[str, np.ndarray[Any, Any]]

HEADER = '<ir_version: 10, opset_import: ["" : 25, "tapeout" : 1]>\n'
SIZES = ((3, 5, 7, 11, 13), (2, 7, 5, 3, 17))
PRINTED = 16  # constants of more elements are printed without their numbers


@dataclass
class Case:
    """One case of a file: `head` are its lines `key: value`, `sections` its texts by name."""

    path: Path
    title: str
    head: list[tuple[str, str]] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.path.stem}: {self.title}"

    def values(self, key: str) -> list[str]:
        return [v for k, v in self.head if k == key]


def read(path: Path) -> tuple[str, list[Case]]:
    """The text in front of the first case, and the cases of a file."""
    preface, *parts = re.split(r"^=== *", path.read_text(), flags=re.MULTILINE)
    found = []
    for part in parts:
        top, *sections = re.split(r"^--- *(\w+) *\n", part, flags=re.MULTILINE)
        title, _, head = top.partition("\n")
        case = Case(path, title.strip())
        for line in head.splitlines():
            if line.strip():
                key, colon, value = line.partition(":")
                assert colon, f"{path}: {title}: '{line}' is no 'key: value'"
                case.head.append((key.strip(), value.strip()))
        case.sections = {k: v.strip("\n") + "\n" for k, v in zip(sections[::2], sections[1::2], strict=True)}
        found.append(case)
    return preface, found


def cases(module: str, pattern: str = "*.txt") -> list[Case]:
    """All cases in the files beside `module` (its `__file__`) that match `pattern`."""
    paths = sorted(Path(module).parent.glob(pattern))
    assert paths, f"no files {pattern} beside {module}"
    return [case for path in paths for case in read(path)[1]]


def check(case: Case, passes: Mapping[str, Sequence[pipeline.Pass]], bless: bool = False) -> ir.Model:
    """Run one case: compare the text that comes out, and the numbers. Returns the model after the passes."""
    proto = parse(case.sections["before"])
    model = imported(proto)
    names = [n for line in case.values("passes") for n in re.split(r"[ ,]+", line) if n]
    history = pipeline.run(model, [step for name in names for step in passes[name]])
    compare(case, proto, model)
    got = {"after": text(model)}
    if "declined" in case.sections:
        lines = dict.fromkeys(f"{d.rule}: {d.reason}" for s in history.steps for d in s.declined)
        got["declined"] = "".join(f"{line}\n" for line in lines)
    if bless:
        _bless(case, got)
    for section, expected in got.items():
        assert case.sections.get(section, "") == expected, f"{case}: '{section}' is not what came out"
    return model


# --- reading -----------------------------------------------------------------------------------------------


def parse(source: str) -> onnx.ModelProto:
    """ONNX text -> a model whose value infos that nobody makes are initializers with random data."""
    whole = source if source.lstrip().startswith("<") else HEADER + source
    proto = parser.parse_model(whole)
    if not any(o.domain == "tapeout" for o in proto.functions):
        kept = [o for o in proto.opset_import if o.domain != "tapeout" or "tapeout" in source]
        del proto.opset_import[:]
        proto.opset_import.extend(kept)
    made = {name for node in proto.graph.node for name in node.output}
    made |= {v.name for v in (*proto.graph.input, *proto.graph.initializer)}
    for info in list(proto.graph.value_info):
        if info.name not in made:
            shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
            rng = np.random.default_rng(zlib.crc32(info.name.encode()))
            dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(draw(rng, dtype, shape), info.name))
            proto.graph.value_info.remove(info)
    return proto


def imported(proto: onnx.ModelProto) -> ir.Model:
    """The canonical import: the loader's own."""
    try:
        from tapeout.compiler.ir.load import from_proto
    except ImportError:
        return _minimal(proto)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return from_proto(copy)


def _minimal(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    counter = itertools.count()
    for graph in g.graphs(model):
        for node in list(graph):
            node.name = node.name or f"n{next(counter)}"
            set_origin(node, [node.name])
            if node.op_type == "Constant":
                tensor = next(iter(node.attributes.values())).value
                tensor = tensor if isinstance(tensor, ir.TensorProtocol) else ir.tensor(tensor)
                value = g.add_constant(graph, tensor, node.outputs[0].name or "constant")
                node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
                graph.remove(node, safe=True)
    g.share_names(model.graph)
    return model


# --- printing ----------------------------------------------------------------------------------------------


def text(model: ir.Model) -> str:
    """The main graph of `model` in ONNX's text syntax; stable under renumbering of made names."""
    names = _renumbered(model)
    return "".join(f"{line}\n" for line in _graph(model.graph, names, ""))


def _renumbered(model: ir.Model) -> dict[str, str]:
    names: dict[str, str] = {}
    for graph in g.graphs(model):
        for value in (*graph.inputs, *(v for n in graph for v in (*n.inputs, *n.outputs) if v is not None)):
            name = value.name or ""
            if "~" in name and name not in names:
                names[name] = f"{name.split('~')[0]}~{len(names) + 1}"
    return names


def _quoted(name: str) -> str:
    return (
        name
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
        else '"' + name.replace("\\", r"\\").replace('"', r"\"") + '"'
    )


def _type(value: ir.Value) -> str:
    kind = "?" if value.dtype is None else value.dtype.name.lower()
    shape = g.dims(value)
    if not shape:
        return kind if shape == () else kind + "[]"
    return (
        kind
        + "["
        + ",".join(d if d == "?" else _quoted(d) if isinstance(d, str) else str(d) for d in shape)
        + "]"
    )


def _graph(graph: ir.Graph, names: Mapping[str, str], indent: str) -> list[str]:
    def name(value: ir.Value | None) -> str:
        return '""' if value is None or not value.name else _quoted(names.get(value.name, value.name))

    def typed(values: Sequence[ir.Value]) -> str:
        return ", ".join(f"{_type(v)} {name(v)}" for v in values)

    lines = [f"{graph.name or 'agraph'} ({typed(graph.inputs)}) => ({typed(graph.outputs)})"]
    used = [v for n in graph for v in n.inputs if v is not None]
    order = {id(v): i for i, v in reversed(list(enumerate((*used, *graph.outputs))))}
    constants = sorted(
        graph.initializers.values(), key=lambda v: (order.get(id(v), len(order)), v.name or "")
    )
    if constants:
        lines.append("<" + ",\n ".join(f"{_type(v)} {name(v)}{_numbers(v)}" for v in constants) + ">")
        lines = "\n".join(lines).split("\n")
    lines.append("{")
    for node in graph:
        domain = f"{node.domain}." if node.domain else ""
        attributes = [f"{k} = {_attribute(a, names, indent)}" for k, a in sorted(node.attributes.items())]
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        left = ", ".join(name(v) for v in node.outputs)
        right = ", ".join(name(v) for v in inputs)
        shown = f" <{', '.join(attributes)}>" if attributes else ""
        call = f"({right}){shown}" if g.has_subgraph(node) else f"{shown[1:]} ({right})".lstrip()
        lines.append(f"   {left} = {domain}{node.op_type} {call}")
    return [line if i == 0 else indent + line for i, line in enumerate(lines)] + [indent + "}"]


def _numbers(value: ir.Value) -> str:
    assert value.const_value is not None
    array = value.const_value.numpy()
    if array.size > PRINTED:
        return ""
    return " = {" + ", ".join(_number(x) for x in array.reshape(-1).tolist()) + "}"


def _number(x: Any) -> str:
    if isinstance(x, bool):
        return str(int(x))
    if isinstance(x, str | bytes):
        return '"' + (x.decode() if isinstance(x, bytes) else x) + '"'
    return f"{x:.7g}" if isinstance(x, float) else str(x)


def _attribute(attr: ir.Attr, names: Mapping[str, str], indent: str) -> str:
    value = attr.value
    if attr.type == ir.AttributeType.GRAPH:
        return "\n".join(_graph(value, names, indent + "   ")).lstrip()
    if attr.type == ir.AttributeType.TENSOR:
        array = value.numpy()
        shape = ",".join(str(d) for d in array.shape)
        numbers = ", ".join(_number(x) for x in array.reshape(-1).tolist())
        return f"{value.dtype.name.lower()}[{shape}] {{{numbers}}}"
    if attr.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return "[" + ", ".join(_scalar(x) for x in value) + "]"
    return _scalar(value)


def _scalar(x: Any) -> str:
    shown = _number(x)
    return shown + ".0" if isinstance(x, float) and re.fullmatch(r"-?\d+", shown) else shown


def _bless(case: Case, got: Mapping[str, str]) -> None:
    """Write `got` into the file of `case`. The file is read again, for other cases of it may have been
    written."""
    preface, every = read(case.path)
    mine = next(c for c in every if c.title == case.title)
    for sections in (case.sections, mine.sections):
        sections.update(got)
    blocks = []
    for each in every:
        head = "".join(f"{k}: {v}\n" for k, v in each.head)
        body = "".join(f"--- {k}\n{v}" for k, v in each.sections.items())
        blocks.append(f"=== {each.title}\n{head}{body}")
    case.path.write_text(preface + "\n".join(blocks))


# --- numbers -----------------------------------------------------------------------------------------------


def compare(case: Case, proto: onnx.ModelProto, model: ir.Model) -> None:
    """Hold the inputs and outputs of `model` against those of `proto`, by name, dtype, shape and numbers."""
    after = ir.to_proto(model)
    symbols = {d.dim_param for v in proto.graph.input for d in v.type.tensor_type.shape.dim}
    for kind in ("input", "output"):
        old, new = ([_signature(v) for v in getattr(p.graph, kind)] for p in (proto, after))
        if kind == "input":
            constants = {v.name for v in proto.graph.initializer}
            old = [v for v in old if v[0] not in constants]
        fit = len(old) == len(new) and all(_fits(a, b, symbols) for a, b in zip(old, new, strict=True))
        assert fit, f"{case}: the graph's {kind}s changed: {new}, expected {old}"
    limit = float((case.values("tolerance") or ["1e-5"])[-1])
    for index, bound in enumerate(_bindings(case, proto)):
        data = _data(case, proto, bound, index)
        reference, result = run(proto, data), run(after, data)
        for name, a in reference.items():
            b = result[name]
            where = f"{case}: output '{name}' with {bound}"
            assert a.dtype == b.dtype and a.shape == b.shape, (
                f"{where}: {b.dtype}{b.shape}, expected {a.dtype}{a.shape}"
            )
            worst = deviation(a, b)
            assert worst <= limit, f"{where}: deviation {worst:.3g} of the largest value, allowed {limit:.3g}"


def deviation(reference: np.ndarray[Any, Any], result: np.ndarray[Any, Any]) -> float:
    """max |a-b| / max |a| over finite elements; infinite where NaNs or infinities disagree."""
    if reference.dtype.kind not in "fiucV" or reference.size == 0:
        return 0.0 if np.array_equal(reference, result) else float("inf")
    a, b = reference.astype(np.float64), result.astype(np.float64)
    odd = ~np.isfinite(a)
    if not np.array_equal(a[odd], b[odd], equal_nan=True) or np.any(np.isnan(b) != np.isnan(a)):
        return float("inf")
    a, b = a[~odd], b[~odd]
    if a.size == 0:
        return 0.0
    return float(np.max(np.abs(a - b)) / max(float(np.max(np.abs(a))), 1e-30))


def run(proto: onnx.ModelProto, data: Arrays) -> Arrays:
    """All outputs by name: ONNX Runtime with optimizations off, onnx.reference where it has no kernel."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    names = [o.name for o in proto.graph.output]
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "NOT_IMPLEMENTED" not in str(error) and "NotImplemented" not in type(error).__name__:
            raise
        from onnx.reference import ReferenceEvaluator

        return dict(zip(names, ReferenceEvaluator(proto).run(names, data), strict=True))
    return dict(zip(names, session.run(names, data), strict=True))


def draw(
    rng: np.random.Generator,
    dtype: Any,
    shape: Sequence[int],
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Random data: floats uniform in [low, high) (default -1.5, 1.5), integers likewise (default 0, 5),
    booleans."""
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0 if low is None else int(low), 5 if high is None else int(high), shape).astype(
            dtype
        )
    if dtype.kind in "OSU":
        return rng.choice(np.array(["a", "b", "c"], dtype=object), shape)
    return np.asarray(rng.uniform(-1.5 if low is None else low, 1.5 if high is None else high, shape)).astype(
        dtype
    )


def _signature(info: onnx.ValueInfoProto) -> tuple[Any, ...]:
    """Name, dtype and shape; None for a dimension or a shape that is not stated."""
    kind = info.type.tensor_type
    dims = [d.dim_param or d.dim_value if d.WhichOneof("value") else None for d in kind.shape.dim]
    return info.name, kind.elem_type, dims if kind.HasField("shape") else None


def _fits(old: tuple[Any, ...], new: tuple[Any, ...], inputs: set[str]) -> bool:
    """True where `new` is `old`, but for what import may fill in: unknown dimensions, and names of no
    input's."""
    if old[:2] != new[:2] or old[2] is None or new[2] is None:
        return old[:2] == new[:2] and old[2] is None
    return len(old[2]) == len(new[2]) and all(
        a == b or a is None or (isinstance(a, str) and a not in inputs)
        for a, b in zip(old[2], new[2], strict=True)
    )


def _bindings(case: Case, proto: onnx.ModelProto) -> Iterator[dict[str, int]]:
    symbols = list(
        dict.fromkeys(
            d.dim_param for v in proto.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param
        )
    )
    given = [{k: int(v) for k, v in re.findall(r"(\S+)\s*=\s*(\d+)", line)} for line in case.values("dims")]
    for sizes in given or [dict(zip(symbols, s, strict=False)) for s in (SIZES if symbols else SIZES[:1])]:
        assert set(symbols) <= set(sizes), f"{case}: state every size in 'dims:': {symbols}"
        yield sizes


def _data(case: Case, proto: onnx.ModelProto, bound: Mapping[str, int], index: int) -> Arrays:
    seed = int.from_bytes(hashlib.sha256(f"{case.title}{index}".encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    head = dict(case.head)
    data = {}
    constants = {i.name for i in proto.graph.initializer}
    for info in proto.graph.input:
        if info.name in constants:
            continue
        kind = info.type.tensor_type
        shape = [
            d.dim_value if d.HasField("dim_value") else bound[d.dim_param] if d.dim_param else 2
            for d in kind.shape.dim
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if f"values {info.name}" in head:
            choice = [float(v) for v in head[f"values {info.name}"].split()]
            data[info.name] = rng.choice(np.array(choice), shape).astype(dtype)
        elif f"range {info.name}" in head:
            low, high = head[f"range {info.name}"].split()
            data[info.name] = draw(rng, dtype, shape, float(low), float(high))
        else:
            data[info.name] = draw(rng, dtype, shape)
    return data
