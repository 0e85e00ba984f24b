"""Declarations: what is not understood is an error that helps, what does not hold explains itself."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.compiler.declaration import Declaration, Refusal, Row
from tapeout.compiler.errors import InternalError, TapeoutError, UsageError, VendorToolError
from tapeout.compiler.operators import Call
from tapeout.compiler.quantities import quantity
from tests.passtext import imported, parse

CONV = """agraph (float[1,{i},{h},{w}] x) => (float[a,b,c,d] y) <float[{o},{g},{k},{k}] k>
{{ [conv] y = Conv<{a}> (x, k) }}"""


def conv(
    attributes: str = "strides=[1,1]",
    *,
    i: int = 3,
    o: int = 4,
    g: int = 3,
    k: int = 3,
    h: int = 9,
    w: int = 9,
) -> ir.Model:
    return imported(parse(CONV.format(a=attributes, i=i, o=o, g=g, k=k, h=h, w=w)))


def declare(folder: Path, text: str, device: str | None = None, **more: str) -> Declaration:
    """A declaration with `text` after the first line; further files by keyword."""
    for name, content in more.items():
        (folder / f"{name}.toml").write_text(content)
    path = folder / "target.toml"
    path.write_text(f'api = 1\nname = "t"\n{text}')
    return Declaration.load(path, device)


def answer(folder: Path, row: str, model: ir.Model) -> str:
    """ "taken", or the refusal of the only node, by a declaration with one Conv row."""
    declaration = declare(folder, f"[[op.Conv]]\n{row}\n")
    found = declaration.accept(model)
    return str(found.refused[0]) if found.refused else "taken"


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("[[op.Konv]]", "unknown operator 'Konv'", "did you mean 'Conv'?"),
        ("[[op.Conv]]\nexact = {int46 = 31}", "unknown key 'int46'", "did you mean 'int4'?"),
        ("[[op.Conv]]\nexact = {int64 = 0}", "'int64' expects a number of bits, 1 to 64, found 0", None),
        ('[[op.Conv]]\nlowr = "x"', "op.Conv, row 1: unknown key 'lowr'", "did you mean 'lower'?"),
        (
            "[[op.Conv]]\n[[op.Conv]]\nlower = 3",
            "op.Conv, row 2, lower: expected a string, found an integer",
            None,
        ),
        ("[[op.Conv]]\nrank.Z = 4", "unknown port 'Z' of Conv", "valid: B, W, X, Y"),
        ("[[op.Conv]]\nports.Wx = {}", "unknown port 'Wx' of Conv", "did you mean 'W'?"),
        ('[[op.Conv]]\nports.W = {role = "wieght"}', "unknown role 'wieght'", "did you mean 'weight'?"),
        ('[[op.Conv]]\nports.W = {dtpe = "int8"}', "unknown key 'dtpe'", "did you mean 'dtype'?"),
        ('[[op.Conv]]\nports.W = {scale = "X*V"}', "unknown port 'V' of Conv", "valid: B, W, X, Y"),
        ("[[op.Conv]]\nports.W = {scale = -1.0}", "'scale' expects a positive number", None),
        ("[[op.Conv]]\nports.W = {symmetric = 1}", "'symmetric' expects true or false", None),
        (
            '[[op.Conv]]\ntypes.T2 = "float32"',
            "unknown type variable or port 'T2' of Conv",
            "did you mean 'T'?",
        ),
        ('[[op.Conv]]\ntypes.T = "float23"', "unknown type 'float23'", "did you mean 'float32'?"),
        (
            '[[op.Conv]]\nquantity."stride.mx" = 1',
            "unknown quantity 'stride.mx' of Conv",
            "did you mean 'stride.max'?",
        ),
        (
            "[[op.Conv]]\nquantity.stride.max = {max = 1}",
            "unknown quantity 'stride'",
            'quantity."stride.max"',
        ),
        (
            '[[op.Conv]]\nquantity."attr.gruop" = 1',
            "unknown quantity 'attr.gruop'",
            "did you mean 'attr.group'?",
        ),
        ('[[op.Conv]]\nquantity."X.rnk" = 1', "unknown quantity 'X.rnk'", "did you mean 'X.rank'?"),
        ("[[op.Conv]]\nquantity.group = {maximum = 1}", "unknown key 'maximum'", "did you mean 'max'?"),
        ('[[op.Conv]]\nquantity.group = {max = "1"}', "'max' expects a number, found a string", None),
        ("[[op.Conv]]\nquantity.group = {}", "bounds nothing", None),
        ("[[op.Conv]]\nquantity.group = {in = []}", "'in' expects a list with at least one value", None),
        ("[[op.Conv]]\nquantity.group = {multiple_of = 0}", "'multiple_of' expects a positive integer", None),
        ("[[op.Conv]]\nbound = {quanta = -1}", "'quanta' expects an integer, 0 or more", None),
        ("[[op.Conv]]\nbound = {rate = 1.5}", "'rate' expects a share between 0 and 1", None),
        ('[[op.Conv]]\nlayout = "NCWH"', "unknown layout 'NCWH'", "did you mean 'NCHW'?"),
        ('[[op.Conv]]\ndevices = ["cpu"]', "unknown device 'cpu'", None),
        ('same_scale = ["x"]', "unknown key 'same_scale'", None),
        ('[op.Conv]\nlower = "x"', "op.Conv: expected rows, found a table", "a row begins with [[op.Conv]]"),
        ('include = ["../*.toml"]', "leaves the folder", None),
        ('include = ["rows/*.toml"]', "no file matches 'rows/*.toml'", None),
        ("[device.cpu]\nlable = 1", "unknown key 'lable'", "did you mean 'label'?"),
        ("[[op.Conv]\n", "is not valid TOML", None),
        ('[[common]]\nops = ["Cnv"]\n[[op.Conv]]', "common: no row is for 'Cnv'", "did you mean 'Conv'?"),
        ("[[common]]\nrank.Xx = 4\n[[op.Conv]]", "common: unknown port 'Xx'", None),
        (
            '[[common]]\nquantity."Z.rank" = 4\n[[op.Conv]]',
            "common: unknown quantity 'Z.rank'",
            "did you mean",
        ),
        ('[[common]]\nlower = "x"\n[[op.Conv]]', "common: unknown key 'lower'", None),
    ],
)
def test_what_is_not_understood_is_an_error(tmp_path: Path, text: str, says: str, hint: str | None) -> None:
    with pytest.raises(VendorToolError) as caught:
        declare(tmp_path, text)
    assert says in caught.value.message
    assert "target.toml" in caught.value.message
    assert hint is None or hint in str(caught.value.hint)


def test_the_api_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "target.toml"
    path.write_text('name = "t"')
    with pytest.raises(VendorToolError, match="states no api"):
        Declaration.load(path)
    path.write_text('api = 2\nname = "t"\nnews = true')  # what version 2 has added is no misspelt key
    with pytest.raises(
        VendorToolError, match="version 2 of the plugin interface, this tapeout has version 1"
    ) as e:
        Declaration.load(path)
    assert e.value.hint == "install a newer tapeout" and "target.toml" in e.value.message
    with pytest.raises(VendorToolError, match="cannot be read"):
        Declaration.load(tmp_path / "missing.toml")


def test_an_included_file_is_named_and_may_not_be_a_link_to_elsewhere(tmp_path: Path) -> None:
    inside = tmp_path / "target"
    (inside / "rows").mkdir(parents=True)
    (inside / "rows" / "bad.toml").write_text("[[op.Conv]]\nlowr = 1")
    with pytest.raises(VendorToolError, match=r"rows/bad.toml: op.Conv, row 1: unknown key 'lowr'"):
        declare(inside, 'include = ["rows/*.toml"]')
    (inside / "rows" / "bad.toml").unlink()
    (tmp_path / "outside.toml").write_text("")
    (inside / "rows" / "link.toml").symlink_to(tmp_path / "outside.toml")
    with pytest.raises(VendorToolError, match="leaves the folder"):
        declare(inside, 'include = ["rows/*.toml"]')


KEYS = st.sampled_from(
    ["lower", "ports", "types", "rank", "quantity", "bound", "same_scale", "devices", "fix", "x"]
)
LEAVES = st.one_of(
    st.integers(),
    st.booleans(),
    st.floats(allow_nan=True),
    st.text(max_size=4),
    st.sampled_from(["float32", "X", "weight"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["X", "W", "T", "max", "in", "group", "role", "stride.max", "q"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_row_is_read_or_refused_with_one_clear_error(row: dict[str, object]) -> None:
    from tapeout.compiler.declaration import parse as reader
    from tapeout.compiler.operators import onnx_interface
    from tapeout.compiler.quantities import Vocabulary

    try:
        made = reader.make_row(
            row, reader.ROW_KEYS, "Conv", 1, "f.toml", onnx_interface("Conv"), Vocabulary(), ["cpu"]
        )
    except VendorToolError as error:
        assert error.message.startswith("declaration f.toml: op.Conv, row 1")
    else:
        assert isinstance(made, Row) and set(row) <= set(reader.ROW_KEYS)


# --- matching --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "attributes", "says"),
    [
        ('quantity."stride.max" = {max = 3}', "strides=[3,3]", "taken"),
        ('quantity."stride.max" = {max = 3}', "strides=[1,4]", "Conv 'conv': stride 4, at most 3 on t"),
        (
            'quantity."stride.max" = {min = 2, fix = "x"}',
            "strides=[1,1]",
            "Conv 'conv': stride 1, at least 2 on t; x",
        ),
        ("quantity.group = 1\nfix = 'split it'", "group=3", "Conv 'conv': group 3, exactly 1 on t; split it"),
        (
            'quantity."attr.strides" = {max = 2}',
            "strides=[2,3]",
            "Conv 'conv': strides [2, 3], at most 2 on t",
        ),
        (
            'quantity."attr.strides" = {in = [[1,1],[2,2]]}',
            "strides=[1,2]",
            "[1, 2], must be [1, 1] or [2, 2] on t",
        ),
        ('quantity."attr.strides" = {in = [[1,1],[2,2]]}', "strides=[2,2]", "taken"),
        ('quantity."attr.strides" = {in = [1, 2]}', "strides=[1,2]", "taken"),
        ('quantity."attr.pads" = "absent"', "strides=[1,2]", "taken"),
        ('quantity."attr.pads" = "absent"', "pads=[0,0,0,0]", "pads [0, 0, 0, 0], must be left out on t"),
        ('quantity."attr.auto_pad" = {in = ["NOTSET"]}', "strides=[1,1]", "taken"),
        (
            'quantity."attr.auto_pad" = {not_in = ["SAME_LOWER"]}',
            'auto_pad="SAME_LOWER"',
            "SAME_LOWER, must not be",
        ),
        ('quantity."channels.out" = {multiple_of = 4}', "", "taken"),
        ('quantity."channels.out" = {multiple_of = 3}', "", "output channels 4, a multiple of 3 on t"),
        ('quantity."W.constant" = true', "", "taken"),
        ('quantity."B.present" = true', "", "Conv 'conv': t needs B"),
        ('quantity."W.present" = false', "", "Conv 'conv': t does not take W"),
        ("ports.B = {optional = false}", "", "Conv 'conv': t needs B"),
        ('ports.X = {role = "const"}', "", "Conv 'conv': t needs constant X"),
        ('ports.W = {role = "weight", rank = 4}', "", "taken"),
        ("ports.W = {rank = 3}", "", "rank of W 4, exactly 3 on t"),
        ('types.T = ["float16", "bfloat16"]', "", "type of X float32, must be float16 or bfloat16"),
        (
            'types = {T = "float16", X = "float32"}',
            "",
            "Conv 'conv': type of W float32, must be float16 on t",
        ),
        ("rank.X = 4", "", "taken"),
        ("rank.'*' = {max = 4}", "", "taken"),
        ("rank = {'*' = 3, X = 4, W = 4}", "", "Conv 'conv': rank of Y 4, exactly 3 on t"),
    ],
)
def test_keys_hold_or_are_named(tmp_path: Path, row: str, attributes: str, says: str) -> None:
    model = conv(attributes or "strides=[1,1]", **_grouped(attributes))
    found = answer(tmp_path, row, model)
    assert found == says if says == "taken" else says in found


def _grouped(attributes: str) -> dict[str, int]:
    return {"g": 1, "o": 6} if "group=3" in attributes else {}


def test_unknown_numbers_are_refused_unless_the_row_says_so(tmp_path: Path) -> None:
    text = "agraph (float[N,3,9,9] x) => (float[N,4,7,7] y) <float[4,3,3,3] k> { [conv] y = Conv (x, k) }"
    model = imported(parse(text))
    refused = answer(tmp_path, "quantity.batch = {max = 4}", model)
    assert refused == "Conv 'conv': batch is not known before running (at most 4) on t"
    assert answer(tmp_path, 'quantity.batch = {max = 4, unknown = "ok"}', model) == "taken"


def test_rows_are_alternatives_and_the_nearest_explains(tmp_path: Path) -> None:
    rows = """
[[op.Conv]]
lower = "A"
quantity."stride.max" = {max = 1}
quantity."kernel.max" = {max = 1}
[[op.Conv]]
lower = "B"
quantity."stride.max" = {max = 1}
[[op.Conv]]
lower = "C"
rank.X = 5
"""
    declaration = declare(tmp_path, rows)

    def ask(model: ir.Model) -> Row | Refusal:
        (node,) = model.graph
        return declaration.match(node)

    taken = ask(conv(k=1))
    assert isinstance(taken, Row) and taken.lower == "A"
    taken = ask(conv(k=3))
    assert isinstance(taken, Row) and taken.lower == "B"
    refused = ask(conv("strides=[2,2]"))
    assert isinstance(refused, Refusal) and refused.row is not None
    assert refused.row.lower == "B" and [v.what for v in refused.violations] == ["stride"]
    assert refused.row.where == "target.toml: op.Conv, row 2"


def test_functions_have_the_ports_that_their_model_gives(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 25, "tapeout" : 1]>
agraph (float[1,8,8,3] x) => (float[1,8,8,6] y) <float[6,1,3,1] k>
{ [conv] y = tapeout.ConvNHWC <strides=[1,1], pads=[0,1,0,1], group=3> (x, k) }
<domain: "tapeout", opset_import: ["" : 25]>
ConvNHWC <strides, pads, group: int = 1> (X, W) => (Y)
{ t = Transpose <perm=[0,3,1,2]> (X)
  v = Transpose <perm=[0,3,1,2]> (W)
  z = Conv <strides: ints = @strides, pads: ints = @pads, group: int = @group> (t, v)
  Y = Transpose <perm=[0,2,3,1]> (z) }
"""
    model = imported(parse(text))
    (node,) = model.graph
    row = '[[op."tapeout::ConvNHWC"]]\n'

    def ask(keys: str) -> str:
        found = declare(tmp_path, row + keys).match(node, model.functions)
        return "taken" if isinstance(found, Row) else str(found)

    assert ask('types.T = "float32"\nports.W = {role = "weight"}\nrank.X = 4') == "taken"
    assert ask('quantity."depthwise.multiplier" = 2') == "taken"
    assert ask('quantity."kernel.w" = 1') == "Conv 'conv': kernel width 3, exactly 1 on t"
    assert ask('quantity."padding.kind" = "same"') == "taken"
    assert ask('types = {X = "int8"}') == "Conv 'conv': type of X float32, must be int8 on t"
    with pytest.raises(InternalError, match="needs the functions of the model"):
        declare(tmp_path, row + "rank.X = 4").match(node)


def test_an_operator_without_a_row_gets_the_nearest_name(tmp_path: Path) -> None:
    model = imported(parse("agraph (float[2] x) => (float[2] y) { [r] y = Relu (x) }"))
    (refusal,) = declare(tmp_path, "[[op.Conv]]").accept(model).refused
    assert str(refusal) == "Relu 'r': t has no kernel for Relu"


def test_subgraphs_are_held_against_the_rows_too(tmp_path: Path) -> None:
    text = """agraph (bool c, float[2] x) => (float[2] y)
{ [choose] y = If (c) <then_branch = g1 () => (float[2] a) { [inner] a = Relu (x) },
                       else_branch = g2 () => (float[2] b) { [other] b = Tanh (x) }> }"""
    found = declare(tmp_path, "[[op.If]]\n[[op.Tanh]]").accept(imported(parse(text)))
    assert [r.name for r in found.refused] == ["inner"]
    assert sorted(n.op_type for n, _ in found.placed) == ["If", "Tanh"]


def test_a_narrowing_declaration_takes_what_both_take(tmp_path: Path) -> None:
    base, narrow = tmp_path / "base", tmp_path / "narrow"
    base.mkdir()
    narrow.mkdir()
    parent = declare(base, '[[op.Conv]]\nlower = "CONV_2D"\nquantity.group = 1\n[[op.Relu]]\nlower = "RELU"')
    (narrow / "target.toml").write_text(
        'api = 1\nname = "npu"\nextends = "base"\n[[op.Conv]]\nquantity."stride.max" = {max = 3}'
    )
    child = Declaration.load(narrow / "target.toml", parent=parent)
    taken = child.match(next(iter(conv().graph)))
    assert isinstance(taken, Row) and taken.lower == "CONV_2D"
    assert "stride 4, at most 3 on npu" in str(child.match(next(iter(conv("strides=[4,4]").graph))))
    assert "group 3, exactly 1" in str(child.match(next(iter(conv("group=3", g=1, o=6).graph))))
    relu = imported(parse("agraph (float[2] x) => (float[2] y) { [r] y = Relu (x) }"))
    assert str(child.match(next(iter(relu.graph)))) == "Relu 'r': npu has no kernel for Relu"
    assert child.lowerings() == {"CONV_2D", "RELU"}


def test_a_target_brings_its_own_quantities(tmp_path: Path) -> None:
    @quantity("tiles", "tiles of 8")
    def tiles(call: Call) -> int:
        """Tiles of eight rows."""
        return -(-int(call.output().shape[2]) // 8)  # type: ignore[index, arg-type]

    path = tmp_path / "target.toml"
    path.write_text('api = 1\nname = "t"\n[[op.Conv]]\nquantity.tiles = {max = 1}')
    with pytest.raises(VendorToolError, match="unknown quantity 'tiles'"):
        Declaration.load(path)
    declaration = Declaration.load(path, quantities=[tiles])
    assert isinstance(declaration.match(next(iter(conv(h=10).graph))), Row)
    assert "tiles of 8 2, at most 1" in str(declaration.match(next(iter(conv(h=11).graph))))


def test_an_unknown_device_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no device 'gpuu'") as caught:
        declare(tmp_path, "[device.cpu]\n[device.gpu]", device="gpuu")
    assert caught.value.hint == "did you mean 'gpu'?"


# --- quantization --------------------------------------------------------------------------------

QDQ = """agraph (int8[1,3,9,9] q) => (int8[1,4,7,7] y)
<int8[4,3,3,3] k, float sx = {0.5}, float[4] sw = {0.1,0.2,0.3,0.4}, float sy = {SY}, int8 zx = {ZX},
 int8[4] zw = {0,0,0,ZW}, int8 zy = {3}, int32[4] b,
 float[4] sb = {0.05,0.1,0.15,SB}, int32[4] zb = {0,0,0,0}>
{ x = DequantizeLinear (q, sx, zx)
  w = DequantizeLinear<axis=0> (k, sw, zw)
  c = DequantizeLinear<axis=0> (b, sb, zb)
  [conv] z = Conv (x, w, c)
  y = QuantizeLinear (z, sy, zy) }"""


@pytest.mark.parametrize(
    ("row", "change", "says"),
    [
        ('ports.X = {role = "act", dtype = "int8"}', {}, "taken"),
        ('ports.X = {dtype = "int16"}', {}, "type of X int8, must be int16"),
        ('types.T = "float32"', {}, "taken"),
        ('ports.W = {role = "weight", dtype = "int8", axis = 0, symmetric = true}', {}, "taken"),
        ('ports.W = {role = "weight", axis = 1}', {}, "quantization axis of W 0, exactly 1"),
        ("ports.W = {per_tensor = true}", {}, "quantization of W along axis 0, one scale for the tensor"),
        ("ports.W = {symmetric = true}", {"ZW": "1"}, "zero point of W 0 to 1, exactly 0"),
        ("ports.Y = {dtype = 'int8', scale = 0.25, zp = 3}", {}, "taken"),
        ("ports.Y = {scale = 0.25}", {"SY": "0.26"}, "scale of Y 0.26, exactly 0.25"),
        ("ports.Y = {zp = -128}", {}, "zero point of Y 3, exactly -128"),
        ('ports.B = {role = "bias", dtype = "int32", scale = "X*W"}', {}, "taken"),
        ('ports.B = {scale = "X*W"}', {"SB": "0.3"}, "scale of B 0.05 to 0.3, scale(X*W)"),
        ('same_scale = ["X", "Y"]', {"SY": "0.5", "ZX": "3"}, "taken"),
        (
            'same_scale = ["X", "Y"]\nfix = "requantize"',
            {"SY": "0.5", "ZX": "2"},
            "scale of Y 0.5, 3, the same as X (0.5, 2)",
        ),
        ('quantity."W.storage" = "int8"', {}, "taken"),
        ('quantity."Y.storage" = "int16"', {}, "stored type of Y int8, must be int16"),
    ],
)
def test_ports_are_what_is_stored(tmp_path: Path, row: str, change: dict[str, str], says: str) -> None:
    text = QDQ
    for key, value in ({"SY": "0.25", "ZX": "1", "ZW": "0", "SB": "0.2"} | change).items():
        text = text.replace("{" + key + "}", "{" + value + "}").replace(f",{key}}}", f",{value}}}")
    model = imported(parse(text))
    node = next(n for n in model.graph if n.op_type == "Conv")
    found = declare(tmp_path, f"[[op.Conv]]\n{row}").match(node)
    got = "taken" if isinstance(found, Row) else str(found)
    assert got == says if says == "taken" else says in got


def test_errors_are_all_ours() -> None:
    assert issubclass(VendorToolError, TapeoutError) and VendorToolError.exit_code == 8
