"""Types and shapes of values: one node at a time, and the whole graph with related symbolic dimensions.

Shapes are computed on symbolic dimensions directly (`dimensions.py`), by a rule per operator
(`shape_rules.py`), with the numbers that shape arithmetic carries (`shape_values.py`). An operator without a
rule is inferred by ONNX with its symbols bound to several rows of numbers, and what comes out is read back as
an expression of what went in. Sizes are taken to be at least 1: a graph that only makes sense for empty
tensors is not distinguished.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

from tapeout.compiler.ir import functions
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import Dim, Expr, Undecided, parse, symbol, symbols
from tapeout.compiler.ir.shape_context import Context, Dims, Typed, Unknown
from tapeout.compiler.ir.shape_onnx import DATA_LIMIT, by_onnx
from tapeout.compiler.ir.shape_rules import RULES
from tapeout.compiler.ir.shape_values import KEY, known_value, propagate

__all__ = ["dims_of", "infer", "infer_node", "known_value"]


def dims_of(value: ir.Value | None) -> Dims | None:
    """The shape of `value` as ints and `Expr`, None for an unknown dimension; None where the rank is
    unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(
        d if isinstance(d, int) else None if d.value is None else parse(str(d.value)) for d in value.shape
    )


def infer_node(node: ir.Node) -> None:
    """Set dtypes and shapes of the outputs of `node` from its inputs, and the known values of shape
    arithmetic.

    What cannot be inferred stays as it is; a known shape is only made more precise.
    """
    shapes = [dims_of(v) for v in node.inputs]
    rule = RULES.get(node.op_type) if node.domain == "" else None
    found: Sequence[Typed] | None = None
    if rule is not None:
        try:
            found = rule(Context(node, shapes, _numbers))
        except (Unknown, Undecided, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
            found = None  # attributes or shapes that do not fit: what ONNX makes of them is taken
    if found is None:
        try:
            found = _special(node, shapes)
        except Undecided:
            found = ()
    for value, (dtype, dims) in zip(node.outputs, found, strict=False):
        if dtype is not None and value.dtype is not dtype:
            value.dtype = dtype
        if dims is not None:
            _set(value, dims)
    propagate(node, shapes)


def _numbers(value: ir.Value) -> list[Dim] | None:
    array = known_value(value)
    return None if array is None else array.reshape(-1).tolist()


def _set(value: ir.Value, dims: Dims) -> None:
    old = value.shape
    if old is not None and len(old) == len(dims):
        # What is known already stays: a number, or anything where there is nothing better.
        dims = tuple(
            (o if isinstance(o, int) else None if o.value is None else parse(str(o.value)))
            if isinstance(o, int) or d is None
            else d
            for o, d in zip(old, dims, strict=True)
        )
    value.shape = ir.Shape([d if d is None or isinstance(d, int) else str(d) for d in dims])


def _special(node: ir.Node, shapes: Sequence[Dims | None]) -> Sequence[Typed]:
    if node.domain != "":
        function = functions.of(node)
        return () if function is None else _through_function(node, function)
    if g.has_subgraph(node):
        try:
            return _through_subgraphs(node)
        except (IndexError, ValueError, TypeError):  # a body whose inputs and outputs do not fit the node
            return ()
    return by_onnx(node, shapes)


# --- functions and subgraphs -------------------------------------------------------------------------------


def _through_function(node: ir.Node, function: ir.Function) -> Sequence[Typed]:
    """Infer the body on stand-ins for the node's inputs; the body itself is not touched."""
    stand: dict[ir.Value, ir.Value] = {}
    given = list(node.inputs)
    for i, formal in enumerate(function.inputs):
        actual = given[i] if i < len(given) else None
        if actual is not None:
            stand[formal] = actual
    for inner in function:
        attributes = [
            a for a in (_bound(a, node, function) for a in inner.attributes.values()) if a is not None
        ]
        # Stand-ins read the real values, so their uses are taken back at the end.
        copy = ir.Node(
            inner.domain,
            inner.op_type,
            [None if v is None else stand.get(v) for v in inner.inputs],
            attributes,
            num_outputs=len(inner.outputs), name=inner.name,
        )  # fmt: skip
        for old, new in zip(inner.outputs, copy.outputs, strict=True):
            new.name = old.name
            stand[old] = new
        if copy.op_type == "Constant" and copy.domain == "":
            _constant(copy)
        elif not g.has_subgraph(copy):
            infer_node(copy)
    result = [(stand[v].dtype, dims_of(stand[v])) if v in stand else (None, None) for v in function.outputs]
    for inner in function:
        for old in inner.outputs:
            made = stand[old].producer()
            if made is not None:
                for i in range(len(made.inputs)):
                    made.replace_input_with(i, None)
    return result


def _constant(node: ir.Node) -> None:
    name, attr = next(iter(node.attributes.items()))
    tensor = attr.value if name == "value" else ir.tensor(attr.value)
    value = node.outputs[0]
    value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.numpy().shape)
    if tensor.size <= DATA_LIMIT and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
        value.meta[KEY] = tensor.numpy().astype(object)


def _bound(attr: ir.Attr, node: ir.Node, function: ir.Function) -> ir.Attr | None:
    if not attr.is_ref():
        return attr
    wanted = attr.ref_attr_name or ""
    actual = node.attributes.get(wanted) or function.attributes.get(wanted)
    if actual is None or actual.value is None:
        return None
    return ir.Attr(attr.name, actual.type, actual.value)


def _through_subgraphs(node: ir.Node) -> Sequence[Typed]:
    graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    if node.op_type == "If":
        for graph in graphs:
            _infer_graph(graph)
        for value, result in zip(node.outputs, graphs[0].outputs, strict=True):
            if not isinstance(result.type, ir.TensorType | None):
                value.type = result.type  # a sequence or optional, which has no dtype of its own
        return [_joined(branches) for branches in zip(*(graph.outputs for graph in graphs), strict=True)]
    if node.op_type == "Loop":
        return _loop(node, graphs[0])
    if node.op_type == "Scan":
        return _scan(node, graphs[0])
    for graph in graphs:
        _infer_graph(graph)
    return ()


def _joined(values: Sequence[ir.Value]) -> Typed:
    """What is common to the results of branches."""
    shapes = [dims_of(v) for v in values]
    first = shapes[0]
    if first is None or any(s is None or len(s) != len(first) for s in shapes):
        return values[0].dtype, None
    return values[0].dtype, tuple(
        sizes[0] if all(s == sizes[0] for s in sizes) else None
        for sizes in zip(*(s or () for s in shapes), strict=True)
    )


def _loop(node: ir.Node, body: ir.Graph) -> Sequence[Typed]:
    states = len(node.inputs) - 2
    for value, kind in zip(body.inputs[:2], (ir.DataType.INT64, ir.DataType.BOOL), strict=False):
        value.dtype = value.dtype or kind
    carried = [(v.dtype, dims_of(v)) if v is not None else (None, None) for v in node.inputs[2:]]
    for attempt in range(4):
        for value, (dtype, dims) in zip(body.inputs[2:], carried, strict=False):
            _put(value, dtype, dims)
            if dims is None and attempt:
                value.shape = None  # its rank changes from trip to trip
        _infer_graph(body)
        after = [(v.dtype, dims_of(v)) for v in body.outputs[1 : 1 + states]]
        widened = [_widened(a, b) for a, b in zip(carried, after, strict=False)]
        if widened == carried:
            break
        carried = widened
    stacked: list[Typed] = []
    for value in body.outputs[1 + states :]:
        dims = dims_of(value)
        stacked.append((value.dtype, None if dims is None else (None, *dims)))
    return [*carried, *stacked]


def _widened(a: Typed, b: Typed) -> Typed:
    """What holds before and after an iteration."""
    x, y = a[1], b[1]
    if x is None or y is None or len(x) != len(y):
        return a[0], None
    return a[0], tuple(p if p == q else None for p, q in zip(x, y, strict=True))


def _scan(node: ir.Node, body: ir.Graph) -> Sequence[Typed]:
    scanned = g.attribute(node, "num_scan_inputs")
    states = len(node.inputs) - scanned
    axes = g.attribute(node, "scan_input_axes") or (0,) * scanned
    length: Dim | None = None
    for i, value in enumerate(node.inputs):
        dims = dims_of(value)
        if i >= states and dims is not None:
            axis = axes[i - states] % len(dims)
            length = dims[axis] if length is None else length
            dims = dims[:axis] + dims[axis + 1 :]
        _put(body.inputs[i], None if value is None else value.dtype, dims)
    _infer_graph(body)
    result: list[Typed] = [(v.dtype, dims_of(v)) for v in node.inputs[:states] if v is not None]
    out_axes = g.attribute(node, "scan_output_axes") or (0,) * (len(body.outputs) - states)
    for value, axis in zip(body.outputs[states:], out_axes, strict=True):
        dims = dims_of(value)
        if dims is not None:
            axis = axis % (len(dims) + 1)
            dims = (*dims[:axis], length, *dims[axis:])
        result.append((value.dtype, dims))
    return result


def _put(value: ir.Value, dtype: ir.DataType | None, dims: Dims | None) -> None:
    if dtype is not None:
        value.dtype = dtype
    if dims is not None:
        value.shape = ir.Shape([d if d is None or isinstance(d, int) else str(d) for d in dims])


# --- the whole graph ---------------------------------------------------------------------------------------


def infer(model: ir.Model) -> None:
    """Infer the whole graph, so that one free dimension is one symbol everywhere.

    Input shapes stay; their unknown dimensions get symbols of their own ("x_0"). Shapes that the source
    states for values inside the graph are computed anew; numbers and input symbols in them are kept where
    nothing better is found. Of the stated output shapes, numbers and input symbols stay; whatever else in
    them is filled in. Sizes that depend on data stay unknown.
    """
    functions.own(model)
    free = _name_inputs(model.graph)
    _infer_graph(model.graph, free)


def _name_inputs(graph: ir.Graph) -> set[str]:
    known = {
        str(d.value)
        for v in graph.inputs
        for d in v.shape or ()
        if not isinstance(d, int) and d.value is not None
    }
    free: set[str] = set()
    for value in graph.inputs:
        dims = dims_of(value)
        if dims is None:
            continue
        named: list[Dim] = []
        for i, d in enumerate(dims):
            if d is None:
                plain = re.sub(r"\W", "_", value.name or "", flags=re.ASCII).lstrip("0123456789")
                name = f"{plain or 'input'}_{i}"
                while name in known:
                    name += "_"
                known.add(name)
                d = symbol(name)
            named.append(d)
            free |= symbols(d)
        if None in dims:
            _put(value, None, tuple(named))
    return free


def _infer_graph(graph: ir.Graph, free: set[str] | None = None) -> None:
    """Infer the nodes of `graph` in order. `free` are the symbols that mean something: those of the inputs;
    None inside a subgraph, where only numbers are believed."""
    outputs = {v: dims_of(v) for v in graph.outputs}
    for node in graph:
        stated: list[Dims | None] = []
        for value in node.outputs:
            value.meta.pop(KEY, None)
            stated.append(dims_of(value))
            if value.shape is not None:
                value.shape = None
        infer_node(node)
        for value, dims in zip(node.outputs, stated, strict=True):
            if dims is not None:
                _believe(value, dims, free or set(), value in outputs and free is not None)


def _believe(value: ir.Value, stated: Dims, free: set[str], is_output: bool) -> None:
    """Fill in from what the source states; for a graph output it goes first."""
    meant = tuple(
        d if isinstance(d, int) or (isinstance(d, Expr) and symbols(d) <= free) else None for d in stated
    )
    found = dims_of(value)
    if found is None or len(found) != len(meant):
        if found is None or is_output:
            _put(value, None, meant)
        return
    merged = tuple(
        m if m is not None and (f is None or is_output) else f for f, m in zip(found, meant, strict=True)
    )
    if merged != found:
        _put(value, None, merged)
