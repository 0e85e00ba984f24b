"""Makers of cases for operators that move, cut, join, look up and reduce."""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeout.compiler.conformance.case import Array
from tapeout.compiler.conformance.drafts import NUMPY, Draft, Operand, data
from tapeout.compiler.conformance.draws import Impossible, Maker, Wish
from tapeout.compiler.conformance.makers.elementwise import free, shape


def kind_of(dtype: str) -> str:
    """Data for what only moves numbers: integers of the whole range, so that a narrowed type shows."""
    return "plain" if dtype.startswith(("float", "bool")) else "wide"


def moved(w: Wish, dims: list[int], name: str = "T", ports: tuple[str, ...] = ("data", "input")) -> Operand:
    """The tensor that is moved."""
    dtype = w.dtype(name, ports, ("float32", "int64", "int32", "int8", "bool"))
    return Operand(data(w.draws.rng, dims, dtype, kind_of(dtype)))


def numbers(w: Wish, values: Any, name: str, dtype: str = "int64") -> Operand:
    """An input that says how: constant as a rule, where the row leaves it open computed in one case of six."""
    array = np.asarray(values, NUMPY[dtype])
    stated = w.limits.get(f"{name}.constant")
    if stated is not None:
        return Operand(array, bool(w.value(f"{name}.constant", (True, False))))
    return Operand(array, not w.flip(6))


def axis_of(w: Wish, rank: int, attribute: str = "axis") -> int:
    """An axis in either spelling, within what the row says."""
    if not rank:
        raise Impossible("no axis")
    names = ("axis.from_end",)
    back = w.number(names, tuple(range(1, rank + 1)), low=1, high=rank)
    if w.limits.get(f"attr.{attribute}"):
        return int(w.number(f"attr.{attribute}", range(rank), low=-rank, high=rank - 1))
    return w.pick([rank - back, -back])


def reshape(w: Wish, op: str) -> Draft:
    """Reshape with a kept dimension (0) or one that follows (-1)."""
    dims = shape(w, w.rank("data"), "data")
    size = int(np.prod(dims))
    target = w.pick([[size], list(dims), [1, size], dims[::-1], [size, 1, 1], [-1]])
    if w.flip(3) and len(target) > 1 and len(dims) > 0:
        target = [0 if i == 0 and target[0] == dims[0] else d for i, d in enumerate(target)]
    return Draft(op, [free(w, moved(w, dims)), numbers(w, target, "shape")])


def flatten(w: Wish, op: str) -> Draft:
    dims = shape(w, w.rank("input", low=1), "input")
    return Draft(op, [moved(w, dims)], {"axis": w.pick(range(len(dims) + 1))})


def squeeze(w: Wish, op: str) -> Draft:
    """Squeeze of some axes, or of all of one element."""
    dims = shape(w, w.rank("data", low=1), "data")
    gone = [i for i in range(len(dims)) if w.flip()] or [0]
    dims = [1 if i in gone else max(d, 2) for i, d in enumerate(dims)]
    x = free(w, moved(w, dims))
    x = Operand(x.array, False, {i: n for i, n in x.free.items() if i not in gone})
    if w.flip(4) and not w.limits.get("axes.present"):
        return Draft(op, [x])
    return Draft(op, [x, numbers(w, [w.pick([i, i - len(dims)]) for i in gone], "axes")])


def unsqueeze(w: Wish, op: str) -> Draft:
    """Unsqueeze at one or two places."""
    rank = w.rank("data", "expanded", high=5)
    count = w.pick([1, 2])
    total = rank + count
    if (
        w.row is not None
        and any(b.max is not None and total > b.max for b in w.row.rank.values())
        and not w.outside
    ):
        rank, total = max(rank - count, 0), max(rank, count)
    axes = sorted({w.pick(range(total)) for _ in range(total - rank)})
    while len(axes) < total - rank:
        axes = sorted({*axes, min(set(range(total)) - set(axes))})
    x = moved(w, shape(w, rank, "data"))
    return Draft(op, [free(w, x), numbers(w, [w.pick([a, a - total]) for a in axes], "axes")])


def transpose(w: Wish, op: str) -> Draft:
    """Transpose in any order; the dimensions differ, so that a wrong order shows."""
    rank = w.rank("data", "transposed")
    dims = shape(w, rank, "data")
    left, perm = list(range(rank)), []
    while left:
        perm.append(left.pop(w.pick(range(len(left)))))
    letters = w.limits.get("perm.letters")
    if letters:
        order = w.value("perm.letters", ("NHWC", "NWHC", "NHCW"))
        if isinstance(order, str) and len(order) == 4:
            dims, perm = [1, *(w.pick([2, 3, 4, 5]) for _ in range(3))], ["NHWC".index(c) for c in order]
    absent = w.flip(6)
    return Draft(op, [free(w, moved(w, dims))], {} if absent or not rank else {"perm": perm})


def expand(w: Wish, op: str) -> Draft:
    """Expand to a shape of the same or a larger rank."""
    rank = w.rank("input", "output")
    dims = shape(w, rank, "input")
    dims = [1 if w.flip() else d for d in dims]
    wider = [w.pick([2, 3, 1]) if d == 1 else d for d in dims]
    more = [w.pick([2, 1])] if w.flip(4) and rank < 6 else []
    return Draft(op, [free(w, moved(w, dims)), numbers(w, [*more, *wider], "shape")])


def tile(w: Wish, op: str) -> Draft:
    dims = shape(w, w.rank("input", "output", low=1), "input")
    return Draft(op, [free(w, moved(w, dims)), numbers(w, [w.pick([2, 1, 3]) for _ in dims], "repeats")])


def concat(w: Wish, op: str) -> Draft:
    """Concat of tensors that differ along the axis."""
    rank = w.rank("inputs", low=1)
    dims, axis = shape(w, rank, "inputs"), axis_of(w, rank)
    count = w.number("inputs.count", (2, 3, 1, 4), low=1, high=8)
    dtype = w.dtype("T", ("inputs",), ("float32", "int64", "int8"))
    parts = []
    for _ in range(count):
        mine = list(dims)
        mine[axis] = w.pick([2, 1, 3])
        parts.append(Operand(data(w.draws.rng, mine, dtype, kind_of(dtype))))
    made = Draft(op, list(parts), {"axis": axis})
    return made.constant(count - 1) if count > 1 and w.flip(5) else made


def split(w: Wish, op: str) -> Draft:
    """Split into equal parts, or at the sizes given."""
    rank = w.rank("input", low=1)
    dims, axis = shape(w, rank, "input"), axis_of(w, rank)
    count = w.pick([2, 3, 1])
    if w.flip():
        dims[axis] = count * w.pick([2, 1])
        return Draft(op, [moved(w, dims)], {"axis": axis, "num_outputs": count}, count)
    sizes = [w.pick([2, 1, 3]) for _ in range(count)]
    dims[axis] = sum(sizes)
    return Draft(op, [moved(w, dims), numbers(w, sizes, "split")], {"axis": axis}, count)


def slice_(w: Wish, op: str) -> Draft:
    """Slice along some axes: from either end, backwards too."""
    rank = w.rank("data", "output", low=1)
    dims = [d + 2 for d in shape(w, rank, "data", (2, 3, 1))]
    axes = [i for i in range(rank) if w.flip()] or [w.pick(range(rank))]
    starts, ends, steps = [], [], []
    for axis in axes:
        n = dims[axis]
        step = w.pick([1, 1, 2, -1, -2])
        first = w.pick(range(n - 1))
        stop = w.pick([n, n - 1, first + 1])
        if stop <= first:
            stop = n
        if step < 0:
            first, stop = stop - 1, (first - 1 if first else -n - 1)
        elif w.flip(4):
            stop = 2**31 - 1 if w.flip() and stop == n else stop
        negative = w.flip(3) and step > 0 and first > 0
        starts.append(first - n if negative else first)
        ends.append(stop)
        steps.append(step)
    given = [
        numbers(w, v, name)
        for name, v in (("starts", starts), ("ends", ends), ("axes", axes), ("steps", steps))
    ]
    if all(s == 1 for s in steps) and w.flip():
        given = given[:3]
    return Draft(op, [free(w, moved(w, dims)), *given])


def pad(w: Wish, op: str) -> Draft:
    """Pad with a constant, by reflection or by the edge."""
    rank = w.rank("data", low=1)
    dims = [d + 1 for d in shape(w, rank, "data", (2, 3, 1))]
    mode = w.value("attr.mode", ("constant", "reflect", "edge", "wrap"))
    x = moved(w, dims)
    axes = sorted({w.pick(range(rank)) for _ in range(2)}) if w.flip(4) else None
    count = rank if axes is None else len(axes)
    outside = w.outside == "quantity.pads.value"
    pads = [w.pick([1, 0, 0, 2]) if mode == "constant" else w.pick([1, 0]) for _ in range(2 * count)]
    if outside:
        pads[w.pick(range(len(pads)))] = -1
    operands: list[Operand | None] = [free(w, x), numbers(w, pads, "pads")]
    value = None
    if mode == "constant" and w.flip():
        value = Operand(
            data(w.draws.rng, [], str(x.array.dtype)),
            bool(w.value("constant_value.constant", (True, True, False))),
        )
    operands.append(value)
    if axes is not None:
        operands.append(numbers(w, axes, "axes"))
    return Draft(op, operands, {"mode": mode})


def shape_of(w: Wish, op: str) -> Draft:
    """Shape (of some axes), Size."""
    rank = w.rank("data")
    attributes: dict[str, Any] = {}
    if op == "Shape" and w.flip(3):
        attributes["start"] = w.pick(range(-rank, rank + 1))
        if w.flip():
            attributes["end"] = w.pick(range(-rank, rank + 1))
    return Draft(op, [free(w, moved(w, shape(w, rank, "data")))], attributes)


def constant_of_shape(w: Wish, op: str) -> Draft:
    import onnx_ir as ir

    dtype = w.dtype("T2", ("output",))
    dims = np.array(shape(w, w.rank("output", low=1)), np.int64)
    fill = data(w.draws.rng, [1], dtype)
    return Draft(op, [Operand(dims)], {} if w.flip(4) and dtype == "float32" else {"value": ir.tensor(fill)})


def range_(w: Wish, op: str) -> Draft:
    dtype = w.dtype("T")
    first, step, count = w.pick([0, 1, -3]), w.pick([1, 2, -1]), w.pick([3, 1, 5])
    scale = 0.5 if dtype.startswith("float") else 1
    return Draft(
        op, [Operand(np.asarray(v * scale, NUMPY[dtype])) for v in (first, first + step * count, step)]
    )


def indices(w: Wish, dims: list[int], limit: int, dtype: str) -> Array:
    """Positions below `limit`, from either end."""
    rng = w.draws.rng
    found = rng.integers(-limit if w.flip() else 0, limit, dims)
    return np.asarray(found).astype(NUMPY[dtype])


def gather(w: Wish, op: str) -> Draft:
    """Gather along an axis."""
    rank = w.rank("data", low=1)
    dims, axis = shape(w, rank, "data"), axis_of(w, rank)
    where = (
        shape(w, w.rank("indices", high=max(0, min(2, 6 - rank))), "indices")
        if not w.outside
        else shape(w, w.rank("indices", high=3), "indices")
    )
    found = indices(w, where, dims[axis], w.dtype("Tind", ("indices",), ("int64", "int32")))
    made = Draft(op, [free(w, moved(w, dims)), Operand(found)], {"axis": axis})
    rule = w.row.ports.get("data") if w.row is not None else None
    if rule is not None and rule.role == "weight":
        return made.constant(0)
    return made.constant(w.pick([1, 0])) if w.flip(3) else made


def gather_elements(w: Wish, op: str) -> Draft:
    rank = w.rank("data", low=1)
    dims, axis = shape(w, rank, "data"), axis_of(w, rank)
    found = indices(w, dims, dims[axis], w.dtype("Tind", ("indices",), ("int64", "int32")))
    return Draft(op, [moved(w, dims), Operand(found)], {"axis": axis})


def gather_nd(w: Wish, op: str) -> Draft:
    """GatherND and, with updates, ScatterND."""
    rank = w.rank("data", low=1)
    dims = shape(w, rank, "data")
    batch = w.number("attr.batch_dims", (0, 1), high=rank - 1) if op == "GatherND" else 0
    depth = min(w.number("indices.dim.-1", tuple(range(1, rank - batch + 1)), low=0, high=6), rank - batch)
    most = 6 - (rank - batch - depth) - 1
    lead = [] if most < 1 else [w.pick([2, 3, 1])]
    size = [*dims[:batch], *lead]
    parts = [np.asarray(w.draws.rng.integers(0, d, size)) for d in dims[batch : batch + depth]]
    found = np.stack(parts, -1).astype(np.int64) if depth else np.zeros([*size, 0], np.int64)
    x = moved(w, dims)
    if op == "GatherND":
        return Draft(op, [free(w, x), Operand(found)], {"batch_dims": batch})
    reduction = w.value("attr.reduction", ("none", "add", "mul", "max", "min"))
    if reduction == "none" and depth:  # the order of equal places is not defined
        cells = w.draws.rng.permutation(int(np.prod(dims[:depth])))[: (lead or [1])[0]]
        found = np.stack(np.unravel_index(cells, dims[:depth]), -1).astype(np.int64)
        found = found if lead else found[0]
    if reduction not in ("none",) and x.array.dtype.kind in "iu":
        x = Operand(x.array % np.array(9, x.array.dtype))
    kind = kind_of(str(x.array.dtype)) if reduction == "none" else "plain"
    updates = data(w.draws.rng, [*found.shape[:-1], *dims[depth:]], str(x.array.dtype), kind)
    return Draft(op, [x, Operand(found), Operand(updates)], {"reduction": reduction})


def one_hot(w: Wish, op: str) -> Draft:
    rank = w.rank("indices", high=4)
    depth = w.pick([3, 2, 5])
    found = indices(w, shape(w, rank, "indices"), depth, w.dtype("T1", ("indices",), ("int64", "int32")))
    size = np.asarray(depth, NUMPY[w.dtype("T2", ("depth",), ("int64", "int32"))])
    values = data(w.draws.rng, [2], w.dtype("T3", ("values",), ("float32", "int64")))
    axis = w.pick([-1, *range(-rank - 1, rank + 1)])
    return Draft(op, [Operand(found), Operand(size, True), Operand(values, True)], {"axis": axis})


def top_k(w: Wish, op: str) -> Draft:
    """TopK of distinct numbers: the order of equal ones is not told by ONNX alike."""
    rank = w.rank("X", low=1)
    axis = axis_of(w, rank)
    dims = shape(w, rank, "X")
    dims[axis] = max(dims[axis], 3)
    x = data(w.draws.rng, dims, w.dtype("T", ("X",)), "distinct")
    k = w.pick([1, 2, dims[axis]])
    largest = w.number("attr.largest", (1, 0), high=1)
    return Draft(op, [Operand(x), numbers(w, [k], "K")], {"axis": axis, "largest": largest}, 2)


def non_zero(w: Wish, op: str) -> Draft:
    dtype = w.dtype("T", ("X",))
    x = data(w.draws.rng, shape(w, w.rank("X", low=1), "X"), dtype)
    keep = data(w.draws.rng, x.shape, "bool")
    return Draft(op, [Operand(np.where(keep, x, np.zeros_like(x)))])


def reverse_sequence(w: Wish, op: str) -> Draft:
    rank = w.rank("input", low=2)
    dims = shape(w, rank, "input")
    batch, time = w.number("attr.batch_axis", (0, 1), high=1), w.number("attr.time_axis", (1, 0), high=1)
    if batch == time:
        raise Impossible("one axis for both")
    lengths = np.asarray(w.draws.rng.integers(1, dims[time] + 1, dims[batch]), np.int64)
    return Draft(op, [moved(w, dims), Operand(lengths)], {"batch_axis": batch, "time_axis": time})


def reduce(w: Wish, op: str) -> Draft:
    """Reduce* over some axes, over all, or over none."""
    rank = w.rank("data")
    dims = shape(w, rank, "data")
    dtype = w.dtype("T", ("data",))
    kind = "positive" if op in ("ReduceLogSum", "ReduceL2") else "plain"
    x = data(w.draws.rng, dims, dtype, kind)
    if op == "ReduceProd" and x.dtype.kind in "iu" and x.size:  # no product beyond what 8 bits hold
        x = np.sign(x) if x.dtype.kind == "i" else np.ones_like(x)
        x.reshape(-1)[0] = 3
    axes = [i for i in range(rank) if w.flip()]
    attributes = {"keepdims": w.value("attr.keepdims", (1, 0))}
    if not axes or w.flip(6):
        return Draft(op, [free(w, Operand(x))], attributes)
    given = numbers(w, [w.pick([a, a - rank]) for a in axes], "axes")
    return Draft(op, [free(w, Operand(x)), given], attributes)


def arg_reduce(w: Wish, op: str) -> Draft:
    """ArgMax, ArgMin: of distinct numbers, or of equal ones where the first counts."""
    rank = w.rank("data", low=1)
    axis = axis_of(w, rank)
    x = data(w.draws.rng, shape(w, rank, "data"), w.dtype("T", ("data",)))
    last = w.number("attr.select_last_index", (0, 1), high=1)
    return Draft(
        op, [free(w, Operand(x))], {"axis": axis, "keepdims": w.pick([1, 0]), "select_last_index": last}
    )


def cumulate(w: Wish, op: str) -> Draft:
    rank = w.rank("x", low=1)
    x = data(w.draws.rng, shape(w, rank, "x"), w.dtype("T", ("x",)))
    axis = numbers(w, axis_of(w, rank), "axis", w.dtype("T2", ("axis",), ("int64", "int32")))
    return Draft(op, [Operand(x), axis], {"exclusive": w.pick([0, 1]), "reverse": w.pick([0, 1])})


def trilu(w: Wish, op: str) -> Draft:
    x = moved(w, shape(w, w.rank("input", low=2, high=4), "input"))
    k = [Operand(np.asarray(w.pick([0, 1, -1]), np.int64), True)] if w.flip() else []
    return Draft(op, [x, *k], {"upper": w.pick([1, 0])})


MAKERS: dict[str, Maker] = {
    "Reshape": reshape, "Flatten": flatten, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Transpose": transpose,
    "Expand": expand, "Tile": tile, "Concat": concat, "Split": split, "Slice": slice_, "Pad": pad,
    "Shape": shape_of, "Size": shape_of, "ConstantOfShape": constant_of_shape, "Range": range_,
    "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd, "ScatterND": gather_nd,
    "OneHot": one_hot, "TopK": top_k, "NonZero": non_zero, "ReverseSequence": reverse_sequence,
    "ArgMax": arg_reduce, "ArgMin": arg_reduce, "CumSum": cumulate, "Trilu": trilu,
    **dict.fromkeys(
        ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2",
         "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"), reduce
    ),
}  # fmt: skip
