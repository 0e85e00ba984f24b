"""Archives of ExportedPrograms as data: what could run is refused, whatever is damaged gives one clear error."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.compiler.errors import InvalidModelError, ResourceError, TapeoutError, UnsupportedError
from tapeout.compiler.frontends.pt2_archive import clean_copy

SYMBOL = "Symbol('s77', positive=True, integer=True)"
SPEC = '[1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]'
GRAPH: dict[str, Any] = {
    "graph_module": {
        "graph": {
            "nodes": [{"target": "torch.ops.aten.relu.default", "inputs": [], "name": "relu"}],
            "sym_int_values": {"s": {"as_expr": {"expr_str": f"Add(Mul(Integer(2), {SYMBOL}), Integer(1))"}}},
        },
        "module_call_graph": [{"fqn": "", "signature": {"in_spec": SPEC, "out_spec": SPEC}}],
    },
    "range_constraints": {"s77": {"min_val": 0, "max_val": None}},
    "schema_version": {"major": 8, "minor": 20},
    "torch_version": "2.13.0",
    "guards_code": ["__import__('os').abort()"],
}
WEIGHTS = {"config": {"w": {"path_name": "weight_0", "use_pickle": False}}}


def members(graph: Mapping[str, Any] = GRAPH, weights: Mapping[str, Any] = WEIGHTS) -> dict[str, bytes]:
    return {
        "archive_format": b"pt2",
        "archive_version": b"0",
        "models/model.json": json.dumps(graph).encode(),
        "data/weights/model_weights_config.json": json.dumps(weights).encode(),
        "data/weights/weight_0": b"\1\2\3\4",
        "data/constants/model_constants_config.json": b'{"config": {}}',
        "data/sample_inputs/model.pt": b"a pickle that is not read",
    }


def archive(path: Path, content: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, data in content.items():
            made.writestr(f"model/{name}", data)
    return path


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    graph = copy.deepcopy(GRAPH)
    change(graph)
    return members(graph)


def test_what_is_safe_is_kept_and_nothing_else(tmp_path: Path) -> None:
    found = clean_copy(archive(tmp_path / "a.pt2", members()), tmp_path / "b.pt2")
    assert (found.torch_version, found.schema) == ("2.13.0", (8, 20))
    with zipfile.ZipFile(tmp_path / "b.pt2") as made:
        inner = {n.partition("/")[2]: made.read(n) for n in made.namelist()}
    assert inner["data/sample_inputs/model.pt"] == b""
    assert inner["data/weights/weight_0"] == b"\1\2\3\4"
    assert json.loads(inner["models/model.json"])["guards_code"] == []
    assert inner.keys() == members().keys()


@pytest.mark.parametrize(
    "name",
    ["data/weights/model.pt", "data/constants/custom_obj_0", "data/constants/opaque_obj_0", "data/weights/x"],
)
def test_pickled_weights_and_objects_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="can run any code"):
        clean_copy(archive(tmp_path / "a.pt2", members() | {name: b"x"}), tmp_path / "b.pt2")


def test_a_weight_marked_as_pickle_is_refused(tmp_path: Path) -> None:
    weights = {"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}
    with pytest.raises(UnsupportedError, match="'w' is a pickle"):
        clean_copy(archive(tmp_path / "a.pt2", members(weights=weights)), tmp_path / "b.pt2")


def test_a_weight_in_another_place_is_refused(tmp_path: Path) -> None:
    weights = {"config": {"w": {"path_name": "../../model.pt", "use_pickle": False}}}
    with pytest.raises(InvalidModelError, match="lies in"):
        clean_copy(archive(tmp_path / "a.pt2", members(weights=weights)), tmp_path / "b.pt2")


@pytest.mark.parametrize("name", ["data.pkl", "serialized_state_dict.pt"])
def test_other_files_of_torch_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="pickle"):
        clean_copy(archive(tmp_path / "a.pt2", {name: b"x"}), tmp_path / "b.pt2")


def test_compiled_packages_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="AOTInductor"):
        clean_copy(archive(tmp_path / "a.pt2", {"data/aotinductor/model/a.so": b"x"}), tmp_path / "b.pt2")


@pytest.mark.parametrize(
    "target",
    ["torch.os.system", "torch.load", "torch.ops.aten.from_file.default", "_operator.methodcaller", "math.__loader__",
     "torch.ops.mine.add.default", "torch.ops.aten.relu.default.__globals__", "#extension:x", "print"],
)  # fmt: skip
def test_only_operators_are_looked_up(target: str, tmp_path: Path) -> None:
    content = changed(lambda g: g["graph_module"]["graph"]["nodes"][0].update(target=target))
    with pytest.raises(UnsupportedError, match="no operator of PyTorch's own") as found:
        clean_copy(archive(tmp_path / "a.pt2", content), tmp_path / "b.pt2")
    assert target in found.value.message and found.value.nodes == ("relu",)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "Symbol('__import__(1)')",
        "lambda: 0",
        "Pow(Integer(9), Integer(999999999))",
        "9**9**9**9",
        "[i for i in (1,)]",
        "s77 if s77 else open('x')",
        "Integer(99999999999999999999999)",
        "eval",
        "Add(" * 3000,
        "(" * 200,
        "",
    ],
)
def test_sizes_are_plain_arithmetic(text: str, tmp_path: Path) -> None:
    def change(graph: dict[str, Any]) -> None:
        graph["graph_module"]["graph"]["sym_int_values"]["s"]["as_expr"]["expr_str"] = text

    with pytest.raises(InvalidModelError, match="no plain arithmetic"):
        clean_copy(archive(tmp_path / "a.pt2", changed(change)), tmp_path / "b.pt2")


@pytest.mark.parametrize(
    "spec",
    ['[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]',
     '[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": true}]", "children_spec": []}]',
     '[1, {"type": "mine.Output", "context": "null", "children_spec": []}]', "{", "[1"],
)  # fmt: skip
def test_trees_name_no_classes(spec: str, tmp_path: Path) -> None:
    def change(graph: dict[str, Any]) -> None:
        graph["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec

    with pytest.raises(TapeoutError, match="inputs or outputs"):
        clean_copy(archive(tmp_path / "a.pt2", changed(change)), tmp_path / "b.pt2")


def test_claimed_sizes_are_held_to_the_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt2", "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in (members() | {"data/weights/weight_1": bytes(5_000_000)}).items():
            made.writestr(f"model/{name}", data)
    with pytest.raises(ResourceError, match="claims"):
        clean_copy(tmp_path / "a.pt2", tmp_path / "b.pt2")


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt2", members())
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("other/models/model.json", b"{}")
    with pytest.raises(InvalidModelError, match="twice"):
        clean_copy(path, tmp_path / "b.pt2")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_gives_one_clear_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = archive(folder / "a.pt2", members())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        clean_copy(path, folder / "b.pt2")
    except TapeoutError as error:
        assert str(path) in error.message
