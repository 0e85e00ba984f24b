"""The page of a target is made from its rows: nothing is lost, nothing breaks the table."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from tapeout.compiler.declaration import Declaration
from tapeout.compiler.quantities import Vocabulary
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite
from tapeout.compiler.support_table import quantities_table, support_table
from tests.compiler.tiny_target import declaration
from tests.compiler.vela_u55 import load

CONV = (
    "W constant; B constant; rank of X exactly 4; stride at most 3; padding exactly 0; "
    "dilation exactly 1; group exactly 1; auto_pad one of NOTSET, VALID"
)
BIAS = "B constant; number of elements of B at most 64"


def test_the_page_of_a_small_target() -> None:
    page = support_table(declaration("two"))
    assert page.startswith("# What tiny-two takes\n\nA target without vendor software: JSON in, NumPy out.\n")
    for line in (
        "| all | float32; static shapes |",
        f"| `Conv` | `convolve` |  | {CONV} |",
        f"| `Add` | `add` |  | equal shapes |\n|  | `add_bias` |  | {BIAS} |",
        "| `MatMul` | `matrix` |  | rank of A one of 2, 3; rank of B exactly 2; on two only |",
    ):
        assert line + "\n" in page
    taken, without = support_table(declaration("one")).split("## Without a row")
    assert "`MatMul`" not in taken and "`MatMul`" in without and "`Conv`" not in without


def test_every_row_of_a_large_target_is_one_line_of_a_table() -> None:
    rows = load()
    page = support_table(rows)
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    tables = [line for line in lines if line.count("|") == 5 and "| becomes |" not in line]
    assert len(tables) == len(list(rows))
    for op in rows.rows:
        assert f"| `{op}` |" in page
    assert "## Without a row" not in page


def test_text_stays_inside_its_cell(tmp_path: Path) -> None:
    path = tmp_path / "target.toml"
    path.write_text('api = 1\nname = "t"\n[[op.Relu]]\nnote = "a | b\\nc"')
    assert "| (a \\| b c) |" in support_table(Declaration.load(path))


def test_the_page_of_quantities_is_up_to_date(bless: bool) -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "quantities.md"
    page = quantities_table(Vocabulary())
    if bless:
        path.write_text(page, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == page, "run pytest --bless on this test"


class Softsign(NodeRule):
    """Softsign(x) -> x / (1 + |x|)"""

    ops = ("Softsign",)

    def rewrite(self, op: Builder, node: ir.Node) -> None:
        return None


class Narrow(NodeRule):
    """Op(x: narrow) -> Cast(Op(Cast(x, wide)), narrow)"""

    ops = ("Softsign", "Tan")

    def rewrite(self, op: Builder, node: ir.Node) -> None:
        return None


def test_operators_without_a_row_are_written_out_or_refused_with_the_reason() -> None:
    page = support_table(declaration("one"), (Rewrite("types", (Narrow(),)), Rewrite("plain", (Softsign(),))))
    written, refused = page.split("## Without a row: refused")
    assert "| `Softsign` | Softsign | `Softsign(x) -> x / (1 + \\|x\\|)` |" in written
    lines = {line.rsplit(" | ", 1)[1]: line for line in refused.splitlines() if line.startswith("| `")}
    assert "`Tan`" in lines["no kernel, and no rule that writes it out |"]
    assert "`RandomNormal`" in lines["random: no two runs agree |"]
    assert "`StringSplit`" in lines["text |"] and "`Softsign`" not in refused
