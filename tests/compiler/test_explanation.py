"""Explanations and the count of operations behind their shares."""

from __future__ import annotations

import json
import math

import pytest

from tapeout.compiler.explanation import explain, percent, refusal_error
from tapeout.compiler.operations import operations
from tests.compiler.tiny_target import declaration
from tests.passtext import imported, parse

MODEL = """agraph (float[1,3,8,8] x) => (float[1,4,6,6] y, float[1,3,8,8] z) <float[4,3,3,3] k>
{ [stem] a = Conv (x, k)
  [a1] b = Tanh (a)
  [a2] c = Tanh (b)
  [last] y = Relu (c)
  [root] z = Sqrt (x) }"""

ADVICE = "write {} in operators that tiny has kernels for, or leave it to the host with --fallback host"


def test_text_and_json() -> None:
    table = explain(declaration("one").accept(imported(parse(MODEL))))
    work = 4 * 36 * 27, 144, 144, 144, 192
    assert [line.operations for line in table.lines] == list(work)
    share = (work[0] + work[3]) / sum(work)
    assert table.share == share
    assert table.text.splitlines()[:5] == [
        f"2 of 5 nodes on tiny, {share:.1%} of the operations; 3 refused:",
        "  Tanh 'a1', 'a2': tiny has no kernel for Tanh",
        f"    {ADVICE.format('Tanh')}",
        "  Sqrt 'root': tiny has no kernel for Sqrt",
        f"    {ADVICE.format('Sqrt')}",
    ]
    assert table.text.splitlines()[6:] == [
        "  operator  becomes   nodes  operations",
        f"  Conv      convolve      1       {work[0] / sum(work):.1%}",
        f"  Relu      clamp         1        {work[3] / sum(work):.1%}",
    ]
    assert [line.split()[0] for line in table.full_text.splitlines()[7:]] == [
        "stem",
        "a1",
        "a2",
        "last",
        "root",
    ]
    data = json.loads(json.dumps(table.as_json()))
    assert (data["nodes"], data["placed"], data["refused"], data["target"]) == (5, 2, 3, "tiny")
    assert [entry["lower"] for entry in data["placement"]] == ["convolve", None, None, "clamp", None]
    assert data["placement"][1]["reasons"] == ["tiny has no kernel for Tanh"]
    assert data["placement"][1]["sources"] == ["a1"]
    assert data["placement"][1]["violations"] == [
        {
            "what": "operator",
            "expected": "one that tiny has a kernel for",
            "found": "Tanh",
            "fix": ADVICE.format("Tanh"),
        }
    ]


def test_what_is_the_hosts_is_said_in_the_first_line() -> None:
    acceptance = declaration("one").accept(imported(parse(MODEL)))
    tanh = [r.node for r in acceptance.refused if r.op == "Tanh"]
    asked = explain(acceptance, host=tanh)
    assert asked.coverage().endswith("; 3 refused, 2 of which --fallback host leaves to the CPU")
    given = explain(acceptance, host=tanh, hosted=True)
    assert given.coverage().endswith("; 2 on the CPU: Tanh 'a1', 'a2'; 1 refused")
    whole = explain(acceptance, host=[r.node for r in acceptance.refused], hosted=True)
    assert whole.coverage().endswith("; 3 on the CPU: Tanh 'a1', 'a2', Sqrt 'root'")
    assert [line["host"] for line in given.as_json()["placement"] if "host" in line] == [True, True, False]


def test_everything_taken_says_so() -> None:
    model = imported(parse("agraph (float[2] x) => (float[2] y) { [a] y = Relu (x) }"))
    acceptance = declaration("one").accept(model)
    assert explain(acceptance).coverage() == "1 of 1 nodes on tiny, 100% of the operations"


def test_equal_reasons_are_one_line_however_many_nodes() -> None:
    body = "\n".join(f"[t{i}] v{i + 1} = Tanh (v{i})" for i in range(12))
    model = imported(parse(f"agraph (float[2] v0) => (float[2] v12) {{ {body} }}"))
    error = refusal_error(declaration("one").accept(model))
    assert error.message.splitlines() == [
        "tiny does not take 12 of 12 nodes:",
        "  Tanh 't0', 't1', 't2', 't3' and 8 more: tiny has no kernel for Tanh",
        f"    {ADVICE.format('Tanh')}",
    ]
    assert len(error.nodes) == 12


def test_advice_ends_the_model_before_what_is_refused() -> None:
    text = """agraph (float[2] x) => (float[2] z, float[2] u)
    { [a] y = Relu (x) [b] w = Relu (y) [c] u = Relu (y) [d] z = Tanh (w) }"""
    error = refusal_error(declaration("one").accept(imported(parse(text))))
    assert error.hint == "--outputs w,u ends the model before what is refused"
    early = (
        "agraph (float[2] x) => (float[2] z)"
        " { [a] y = Relu (x) [b] w = Tanh (y) [c] v = Relu (w) [d] z = Relu (v) }"
    )
    assert refusal_error(declaration("one").accept(imported(parse(early)))).hint is None


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100%"), (0.99999, "99.9%"), (0.0, "0%"), (1e-9, "0.1%"), (0.5, "50.0%")]
)
def test_rounding_never_claims_all_or_nothing(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("text", "work"),
    [
        (
            "(float[2,8,10,10] x) => (float[a,b,c,d] y) <float[6,4,3,3] k> {y = Conv<group=2>(x, k)}",
            2 * 64 * 6 * 4 * 9,
        ),
        (
            "(float[2,8,5,5] x) => (float[a,b,c,d] y) <float[8,3,2,2] k> {y = ConvTranspose(x, k)}",
            50 * 8 * 3 * 4,
        ),
        ("(float[2,3,4] x, float[4,5] w) => (float[2,3,5] y) {y = MatMul(x, w)}", 2 * 3 * 4 * 5),
        ("(float[4,3] x, float[4,5] w) => (float[3,5] y) {y = Gemm<transA=1>(x, w)}", 3 * 4 * 5),
        (
            "(float[2,3,4] x, float[2,4,5] w) => (float[2,3,5] y)"
            ' {y = Einsum<equation="bij,bjk->bik">(x, w)}',
            2 * 3 * 4 * 5,
        ),
        (
            "(float[1,2,6,8] q, float[1,2,7,8] k, float[1,2,7,4] v) => (float[1,2,6,4] y)"
            " {y = Attention(q, k, v)}",
            2 * 6 * 7 * (8 + 4),
        ),
        (
            "(float[5,2,3] x) => (float[a,b,c,d] y) <float[1,16,3] w, float[1,16,4] r>"
            " {y = LSTM<hidden_size=4>(x, w, r)}",
            5 * 2 * (16 * 3 + 16 * 4),
        ),
        ("(float[1,4,8,8] x) => (float[a,b,c,d] y) {y = AveragePool<kernel_shape=[2,2]>(x)}", 4 * 49 * 4),
        ("(float[1,4,8,8] x) => (float[a,b,c,d] y) {y = GlobalAveragePool(x)}", 256),
        ("(float[2,6] x) => (float[12] y) <int64[1] s = {12}> {y = Reshape(x, s)}", 0),
        ("(float[2,6] x) => (float[2,6] y) {y = Exp(x)}", 12),
    ],
)
def test_operations(text: str, work: int) -> None:
    (node,) = imported(parse(f"agraph {text}")).graph
    assert operations(node) == work


def test_operations_with_free_dimensions() -> None:
    (node,) = imported(parse("agraph (float[N,3,4] x) => (float[N,3,4] y) {y = Exp(x)}")).graph
    assert operations(node) is None
    assert operations(node, assume=1) == 12
    assert operations(node, assume=7) == 84
    node.outputs[0].shape = type(node.outputs[0].shape)(["2*N+1", "N - 5", "("])  # type: ignore[misc]
    assert operations(node, assume=3) == math.prod((7, 0, 3))
