"""Options, devices, blobs, the server's folders, timing: what is asked for beside the artifact, and refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapeout
from tapeout.compiler.errors import TapeoutError, UsageError, VendorToolError
from tests.passtext import parse

pytest.importorskip("openvino", reason="the package 'openvino' is not installed")

from tapeout.targets.openvino.devices import device, properties
from tapeout.targets.openvino.runtime import core
from tapeout.targets.openvino.server import config, served

MODEL = "agraph (float[1,4] x) => (float[1,4] y) { y = Relu (x) }"


def export(tmp_path: Path, output: Path | None = None, **options: str) -> tapeout.Export:
    named = {k.replace("__", "."): v for k, v in options.items()}
    return tapeout.export(
        parse(MODEL), "openvino", output=output or tmp_path / "m.xml", options=named, verify=False
    )


@pytest.mark.parametrize(("options", "why"), [
    ({"blub": "true"}, "has no option 'blub'; did you mean 'blob'"),
    ({"blob": "yes"}, "expected true or false"),
    ({"property__NUM_STREMS": "1", "blob": "true"}, "did you mean 'NUM_STREAMS'"),
    ({"property__NUM_STREAMS": "many", "blob": "true"}, "NUM_STREAMS"),
    ({"server": "a/b"}, "expected NAME"),
    ({"server": "a:0"}, "a number from 1 on"),
    ({"input__z": "u8"}, "no input 'z'"),
])  # fmt: skip
def test_options_that_do_not_fit_leave_nothing(tmp_path: Path, options: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        export(tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "found"), [
    ("cpu", "CPU"),
    ("AUTO", "AUTO"),
    ("hetero:CPU", "HETERO:CPU"),
    ("MULTI:CPU(2)", "MULTI:CPU(2)"),
    ("AUTO:CPU,-GPU", VendorToolError),
    ("GPU.7", VendorToolError),
    ("HETERO:", "expected devices behind the colon"),
    ("HETRO:CPU", "did you mean 'HETERO'"),
    ("XPU", "OpenVINO has no 'XPU'"),
])  # fmt: skip
def test_devices(text: str, found: Any) -> None:
    if isinstance(found, type):
        with pytest.raises(found, match="there is no GPU"):
            device(text)
    elif found.isupper() or "(" in found:
        assert device(text) == found
    else:
        with pytest.raises(UsageError, match=found):
            device(text)


def test_properties_are_those_of_the_device() -> None:
    assert properties({"property.NUM_STREAMS": "2", "threads": "1"}, "CPU") == {"NUM_STREAMS": "2"}
    with pytest.raises(UsageError, match="no such property; did you mean 'PERFORMANCE_HINT'"):
        properties({"property.performance_hnt": "LATENCY"}, "AUTO:CPU")


def test_a_blob_computes_what_the_file_does(tmp_path: Path) -> None:
    done = export(tmp_path, blob="true", property__NUM_STREAMS="1")
    names = {p.name for p in done.outputs}
    assert {"m.xml", "m.bin", "m.blob", "m.blob.json"} <= names
    note = json.loads((tmp_path / "m.blob.json").read_text())
    assert note["device"] == "CPU" and note["properties"] == {"NUM_STREAMS": "1"} and note["openvino"]
    content = (tmp_path / "m.blob").read_bytes()
    found = core().import_model(io.BytesIO(content), "CPU")([np.array([[-1, 2, -3, 4]], np.float32)])[0]
    np.testing.assert_array_equal(found, [[0, 2, 0, 4]])
    assert [f["name"] for f in done.report["also"]] == ["m.blob", "m.blob.json"]


def test_a_blob_for_a_device_that_is_not_here(tmp_path: Path) -> None:
    for name in ("gpu", "npu"):
        if any(d.startswith(name.upper()) for d in core().available_devices):
            pytest.skip(f"there is a device {name}")
        with pytest.raises(VendorToolError, match=f"there is no {name.upper()} here; OpenVINO .* sees CPU"):
            tapeout.export(
                parse(MODEL), "openvino", device=name, output=tmp_path / "m.xml", options={"blob": "true"}
            )
    assert not list(tmp_path.iterdir())


def test_the_folders_of_the_server(tmp_path: Path) -> None:
    done = export(tmp_path, tmp_path / "models", server="first:3")
    assert done.artifact == tmp_path / "models" / "first" / "3" / "model.xml"
    export(tmp_path, tmp_path / "models", server="second")
    export(tmp_path, tmp_path / "models", server="first:4")
    listed = json.loads((tmp_path / "models" / "config.json").read_text())["model_config_list"]
    assert [e["config"] for e in listed] == [
        {"name": "first", "base_path": "first"},
        {"name": "second", "base_path": "second"},
    ]
    versions = sorted(p.name for p in (tmp_path / "models" / "first").iterdir())
    assert versions == ["3", "4"]
    core().read_model(tmp_path / "models" / "first" / "4" / "model.xml")


def test_a_failed_export_leaves_no_folders(tmp_path: Path) -> None:
    bad = parse("agraph (float[2,2] x) => (float y) { y = Det (x) }")
    with pytest.raises(TapeoutError):
        tapeout.export(
            bad, "openvino", output=tmp_path / "models", options={"server": "a"}, outputs=["nothing"]
        )
    assert not list(tmp_path.iterdir())


def test_a_list_of_something_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"models": []}')
    model = served({"server": "a"})
    assert model is not None
    with pytest.raises(UsageError, match="is no list of models"):
        config(tmp_path, model)


def test_timing_under_hints_on_any_device_string(tmp_path: Path) -> None:
    export(tmp_path, input__x="f32 scale=2")
    for name in (None, "AUTO", "HETERO:CPU", "MULTI:CPU"):
        found = tapeout.bench(tmp_path / "m.xml", device=name, runs=3)
        assert [t.runtime.split()[3] for t in found] == ["latency", "throughput"]
        assert all(t.median > 0 and t.rate for t in found)
    (one,) = tapeout.bench(
        tmp_path / "m.xml", runs=3, hint="throughput", options={"property.NUM_STREAMS": "1"}
    )
    assert one.rate
    with pytest.raises(UsageError, match="no hint 'trhoughput'; did you mean 'throughput'"):
        tapeout.bench(tmp_path / "m.xml", hint="trhoughput")
    with pytest.raises(VendorToolError, match="there is no NPU"):
        tapeout.bench(tmp_path / "m.xml", device="HETERO:NPU,CPU")
