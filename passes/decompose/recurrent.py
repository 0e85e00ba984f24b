"""LSTM, GRU, RNN -> one MatMul over all steps, then the cell per step: unrolled where short, else a Scan.

    Y, Y_h, Y_c = LSTM(X, W, R, B, lens, h0, c0, P)
 -> XW = MatMul(X, W') + b                 for all steps at once
    h, c = cell(XW[t] + MatMul(h, R'), c)  for each step t
    Y = Concat(h_0 .. h_T-1)

Reverse and bidirectional layers, peepholes, coupled gates, clipping, all eleven activations, both layouts and
sequence lengths are covered (ONNX operators LSTM-22, GRU-22, RNN-22). A step past a sequence's length keeps the
state and gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, Changes, NodeRule, Rewrite

Value = ir.Value
State = tuple[ir.Value, ...]
Cell = Callable[[Builder, State, ir.Value], State]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
# Activations with parameters: their default alpha and beta, None where they take none.
PARAMETERS: dict[str, tuple[float | None, float | None]] = {
    "Affine": (1.0, 0.0),
    "LeakyRelu": (0.01, None),
    "ThresholdedRelu": (1.0, None),
    "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, None),
}


@dataclass(frozen=True)
class Recurrent:
    """Writes recurrent operators out in steps. Up to `unroll` steps are written one by one, since a straight line
    runs faster than a loop; more, or an unknown number, become a Scan."""

    unroll: int = 64
    name: str = "recurrent"

    @property
    def rules(self) -> tuple[NodeRule, ...]:
        return (Steps(self.unroll),)

    def __call__(self, model: ir.Model) -> Changes:
        return Rewrite(self.name, self.rules)(model)


class Steps(NodeRule):
    """LSTM | GRU | RNN -> steps of its cell"""

    ops = ("LSTM", "GRU", "RNN")

    def __init__(self, unroll: int) -> None:
        self.unroll = unroll

    def rewrite(self, op: Builder, node: ir.Node) -> Sequence[Value] | str | None:
        x = node.inputs[0]
        assert x is not None
        if g.rank(x) != 3:
            return "the rank of X is not known"
        layout = g.attribute(node, "layout", 0)
        direction = g.attribute(node, "direction", "forward")
        directions = ("forward", "reverse") if direction == "bidirectional" else (direction,)
        if layout:
            x = op.Transpose(x, perm=[1, 0, 2])
        lens = _input(node, 4)
        outputs = [_Direction(op, node, x, lens, d, reverse=name == "reverse").run(self.unroll)
                   for d, name in enumerate(directions)]  # fmt: skip
        y = _join(op, [o[0] for o in outputs], 1)
        finals = [_join(op, [o[1 + k] for o in outputs], 0) for k in range(len(outputs[0]) - 1)]
        if layout:
            y = op.Transpose(y, perm=[2, 0, 1, 3])
            finals = [op.Transpose(v, perm=[1, 0, 2]) for v in finals]
        return [y, *finals][: len(node.outputs)]


def _input(node: ir.Node, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _join(op: Builder, parts: list[Value], axis: int) -> Value:
    """[T, B, H] per direction -> [T, D, B, H] (axis 1), or [B, H] -> [D, B, H] (axis 0)."""
    parts = [op.Unsqueeze(p, np.array([axis], np.int64)) for p in parts]
    return parts[0] if len(parts) == 1 else cast(Value, op.Concat(*parts, axis=axis))


class _Direction:
    """One direction of one layer: the tensors that its cell reads, and the walk over the steps."""

    def __init__(
        self, op: Builder, node: ir.Node, x: Value, lens: Value | None, d: int, *, reverse: bool
    ) -> None:
        self.op, self.node, self.reverse = op, node, reverse
        self.kind = node.op_type
        self.gates = GATES[self.kind]
        w, r = self._pick(1, d), self._pick(2, d)
        assert w is not None and r is not None
        r_shape = g.static_dims(node.inputs[2])
        self.hidden = int(g.attribute(node, "hidden_size") or (r_shape[2] if r_shape else 0))
        self.clip = g.attribute(node, "clip")
        self.activations = _activations(node, d)
        self.linear_before_reset = self.kind == "GRU" and bool(g.attribute(node, "linear_before_reset", 0))
        self.input_forget = self.kind == "LSTM" and bool(g.attribute(node, "input_forget", 0))
        self.lens, self.steps = lens, g.dims(x)[0]  # type: ignore[index]
        if reverse:
            x = self._reversed(x)
        self.weights = op.Transpose(r, perm=[1, 0])  # [H, G*H]
        if self.kind == "GRU" and not self.linear_before_reset:
            sizes = np.array([2 * self.hidden, self.hidden], np.int64)
            self.split_weights = op.Split(self.weights, sizes, axis=1, _outputs=2)
        projected = op.MatMul(x, op.Transpose(w, perm=[1, 0]))  # [T, B, G*H]
        bias = self._bias(d)
        self.x = projected if bias is None else op.Add(projected, bias)
        self.peepholes = self._peepholes(d)
        self.initial = self._initial(x, d)

    def _pick(self, index: int, d: int) -> Value | None:
        value = _input(self.node, index)
        return None if value is None else self.op.Gather(value, np.array(d, np.int64), axis=0)

    def _bias(self, d: int) -> Value | None:
        """The bias that can be added ahead of the steps; the GRU's inner one is kept for the step."""
        both = self._pick(3, d)
        self.inner_bias: Value | None = None
        if both is None:
            return None
        w, r = self.op.Split(both, np.array([self.gates * self.hidden] * 2, np.int64), axis=0, _outputs=2)
        if not self.linear_before_reset:
            return self.op.Add(w, r)  # type: ignore[no-any-return]
        outer, self.inner_bias = self.op.Split(
            r, np.array([2 * self.hidden, self.hidden], np.int64), axis=0, _outputs=2
        )
        zero = self.op.constant(np.zeros(self.hidden), r.dtype)
        return self.op.Add(w, self.op.Concat(outer, zero, axis=0))  # type: ignore[no-any-return]

    def _peepholes(self, d: int) -> list[Value]:
        p = self._pick(7, d) if self.kind == "LSTM" else None
        return (
            []
            if p is None
            else list(self.op.Split(p, np.array([self.hidden] * 3, np.int64), axis=0, _outputs=3))
        )

    def _initial(self, x: Value, d: int) -> State:
        count = 2 if self.kind == "LSTM" else 1
        given = [_input(self.node, 5 + k) for k in range(count)]
        state = []
        for value in given:
            if value is None:
                shape = g.dims(x)
                batch = shape[1] if shape else "?"
                assert x.dtype is not None
                if isinstance(batch, int):
                    value = self.op.constant(np.zeros((batch, self.hidden)), x.dtype, "state")
                else:
                    size = self.op.Concat(
                        self.op.Shape(x, start=1, end=2), np.array([self.hidden], np.int64), axis=0
                    )
                    zero = ir.tensor(np.zeros(1, x.dtype.numpy()))
                    value = self.op.ConstantOfShape(size, value=zero)
            else:
                if g.attribute(self.node, "layout", 0):
                    value = self.op.Transpose(value, perm=[1, 0, 2])
                value = self.op.Gather(value, np.array(d, np.int64), axis=0)
            state.append(value)
        return tuple(state)

    def _reversed(self, x: Value) -> Value:
        """The steps in opposite order, each sequence within its own length."""
        if self.lens is not None:
            lens = self.op.Cast(self.lens, to=ir.DataType.INT64.value)
            return self.op.ReverseSequence(x, lens, batch_axis=1, time_axis=0)  # type: ignore[no-any-return]
        last = np.iinfo(np.int64).min
        return self.op.Slice(  # type: ignore[no-any-return]
            x,
            np.array([-1], np.int64),
            np.array([last], np.int64),
            np.array([0], np.int64),
            np.array([-1], np.int64),
        )

    def run(self, unroll: int) -> list[Value]:
        """All outputs [T, B, H], then the final states [B, H]."""
        op = self.op
        mask = self._mask()
        if isinstance(self.steps, int) and 1 <= self.steps <= unroll:
            y, state = self._unrolled(self.steps, mask)
        else:
            y, state = self._scan(mask)
        if mask is not None:
            y = op.Where(mask, y, self._zero(y))
        if self.reverse:
            y = self._reversed(y)
        return [y, *state]

    def _zero(self, like: Value) -> Value:
        return self.op.constant(np.zeros(()), like.dtype, "zero")

    def _mask(self) -> Value | None:
        """[T, B, 1] bool: whether a step lies within its sequence."""
        if self.lens is None:
            return None
        op, i64 = self.op, ir.DataType.INT64.value
        if isinstance(self.steps, int):
            time = op.constant(np.arange(self.steps, dtype=np.int64).reshape(-1, 1, 1))
        else:
            count = op.Squeeze(op.Shape(self.x, start=0, end=1), np.array([0], np.int64))
            time = op.Range(op.constant(np.array(0, np.int64)), count, op.constant(np.array(1, np.int64)))
            time = op.Unsqueeze(time, np.array([1, 2], np.int64))
        lens = op.Unsqueeze(op.Cast(self.lens, to=i64), np.array([0, 2], np.int64))
        return op.Less(time, lens)  # type: ignore[no-any-return]

    def _unrolled(self, steps: int, mask: Value | None) -> tuple[Value, State]:
        op, state, outputs = self.op, self.initial, []
        axis = np.array([0], np.int64)
        each = (
            (lambda v: op.Split(v, np.ones(steps, np.int64), axis=0, _outputs=steps))
            if steps > 1
            else (lambda v: (v,))
        )
        inside = each(mask) if mask is not None else (None,) * steps
        for x, keep in zip(each(self.x), inside, strict=True):
            new = self.cell(op, state, op.Squeeze(x, axis))
            if keep is not None:
                kept = op.Squeeze(keep, axis)
                new = tuple(op.Where(kept, a, b) for a, b in zip(new, state, strict=True))
            state = new
            outputs.append(op.Unsqueeze(state[0], axis))
        return (outputs[0] if steps == 1 else op.Concat(*outputs, axis=0)), state

    def _scan(self, mask: Value | None) -> tuple[Value, State]:
        op = self.op
        scanned = [self.x] if mask is None else [self.x, mask]
        inputs = [_like(op.graph, "state", v, 0) for v in self.initial] + [
            _like(op.graph, "step", v, 1) for v in scanned
        ]
        body = ir.Graph(
            inputs, [], nodes=[], name=g.fresh(op.graph, "cell"), opset_imports=dict(op.graph.opset_imports)
        )
        g.adopt_names(body, op.graph)
        inner = Builder(body, op.origins)
        state, count = tuple(inputs[: len(self.initial)]), len(self.initial)
        new = self.cell(inner, state, inputs[count])
        if mask is not None:
            new = tuple(inner.Where(inputs[count + 1], a, b) for a, b in zip(new, state, strict=True))
        body.outputs.extend([*new, inner.Identity(new[0])])
        made = op.Scan(*self.initial, *scanned, body=body, num_scan_inputs=len(scanned), _outputs=count + 1)
        return made[count], tuple(made[:count])

    def cell(self, op: Builder, state: State, x: Value) -> State:
        """One step: state ([B, H], ...) and projected input [B, G*H] -> the new state."""
        return {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.kind](op, state, x)

    def _activate(self, op: Builder, which: int, x: Value) -> Any:
        if self.clip:
            x = op.Clip(x, -float(self.clip), float(self.clip))
        return _activation(op, x, *self.activations[which])

    def _rnn(self, op: Builder, state: State, x: Value) -> State:
        return (self._activate(op, 0, op.Add(x, op.MatMul(state[0], self.weights))),)

    def _gru(self, op: Builder, state: State, x: Value) -> State:
        (h,), n = state, self.hidden
        sizes = np.array([2 * n, n], np.int64)
        x_gates, x_new = op.Split(x, sizes, axis=1, _outputs=2)
        h_new = r_new = None
        if self.linear_before_reset:
            h_gates, h_new = op.Split(op.MatMul(h, self.weights), sizes, axis=1, _outputs=2)
            if self.inner_bias is not None:
                h_new = op.Add(h_new, self.inner_bias)
        else:
            r_gates, r_new = self.split_weights
            h_gates = op.MatMul(h, r_gates)
        z, r = op.Split(
            self._activate(op, 0, op.Add(x_gates, h_gates)), np.array([n, n], np.int64), axis=1, _outputs=2
        )
        inner = op.Mul(r, h_new) if h_new is not None else op.MatMul(op.Mul(r, h), r_new)
        new = self._activate(op, 1, op.Add(x_new, inner))
        # (1 - z) * new + z * h, with one multiplication
        return (op.Add(new, op.Mul(z, op.Sub(h, new))),)

    def _lstm(self, op: Builder, state: State, x: Value) -> State:
        (h, c), n = state, self.hidden
        gates = op.Add(x, op.MatMul(h, self.weights))
        if self.peepholes:
            i, o, f, new = op.Split(gates, np.array([n] * 4, np.int64), axis=1, _outputs=4)
            p_i, p_o, p_f = self.peepholes
            i = self._activate(op, 0, op.Add(i, op.Mul(p_i, c)))
            f = self._activate(op, 0, op.Add(f, op.Mul(p_f, c)))
        else:
            three, new = op.Split(gates, np.array([3 * n, n], np.int64), axis=1, _outputs=2)
            i, o, f = op.Split(self._activate(op, 0, three), np.array([n] * 3, np.int64), axis=1, _outputs=3)
        if self.input_forget:
            f = op.Sub(1.0, i)
        c = op.Add(op.Mul(f, c), op.Mul(i, self._activate(op, 1, new)))
        if self.peepholes:
            o = self._activate(op, 0, op.Add(o, op.Mul(p_o, c)))
        return op.Mul(o, _activation(op, c, *self.activations[2])), c


def _like(graph: ir.Graph, hint: str, value: Value, drop: int) -> Value:
    """A body input with the type of `value` and its shape without the first `drop` axes."""
    shape = None if value.shape is None else ir.Shape(list(value.shape)[drop:])
    return ir.Value(name=g.fresh(graph, hint), type=value.type, shape=shape)


def _activations(node: ir.Node, d: int) -> list[tuple[str, float, float]]:
    """(name, alpha, beta) of each activation of direction `d`. The parameter lists hold values only for the
    activations that take one, over all directions in order."""
    per = len(DEFAULTS[node.op_type])
    directions = 2 if g.attribute(node, "direction", "forward") == "bidirectional" else 1
    canonical = {n.lower(): n for n in (*PARAMETERS, "Relu", "Tanh", "Sigmoid", "Softsign", "Softplus")}
    names = [
        canonical.get(n.lower(), n)
        for n in g.attribute(node, "activations", DEFAULTS[node.op_type] * directions)
    ]
    alphas, betas = (list(g.attribute(node, f"activation_{k}", ())) for k in ("alpha", "beta"))
    result = []
    for name in names:
        alpha, beta = PARAMETERS.get(name, (None, None))
        if alpha is not None and alphas:
            alpha = alphas.pop(0)
        if beta is not None and betas:
            beta = betas.pop(0)
        result.append((name, alpha if alpha is not None else 0.0, beta if beta is not None else 0.0))
    return result[d * per : (d + 1) * per]


def _activation(op: Builder, x: Value, name: str, alpha: float, beta: float) -> Any:
    match name:
        case "Affine":
            return op.Add(op.Mul(x, alpha), beta)
        case "ScaledTanh":
            return op.Mul(op.Tanh(op.Mul(x, beta)), alpha)
        case "LeakyRelu" | "ThresholdedRelu" | "Elu":
            return getattr(op, name)(x, alpha=alpha)
        case "HardSigmoid":
            return op.HardSigmoid(x, alpha=alpha, beta=beta)
    return getattr(op, name)(x)
