"""A small model on disk, and the command line run in-process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tapeout.__main__ import main

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z)
{
   [conv] c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]> (x, w, b)
   [relu] y = Relu (c)
   [double] z = Add (y, y)
}
"""


def small_model() -> onnx.ModelProto:
    """A convolution with random weights, dynamic batch, two outputs."""
    rng = np.random.default_rng(11)
    model = parser.parse_model(NETWORK)
    for name, shape in {"w": (4, 3, 3, 3), "b": (4,)}.items():
        model.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    return model


def spoiled(path: Path) -> Path:
    """The small model with one weight changed, as another file."""
    model = small_model()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[2, 1, 0, 0] += 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(small_model(), path)
    return path


@dataclass
class Done:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `tapeout ARGUMENTS` in this process."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(code, out, err)

    return call
