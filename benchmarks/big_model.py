"""Exports a model of several gigabytes and measures peak memory: weights never lie in memory together.

    python benchmarks/big_model.py FOLDER [--gigabytes 3] [--layers 24] [--quantize float16] [--verify] [--keep]

Writes FOLDER/big.onnx, a chain of matrix products with random weights in FOLDER/big.onnx.data, piece by piece;
exports it with `tapeout export` as a process of its own; runs the TFLite file once under the builtin kernels of LiteRT
in a third process and compares it with NumPy, weight by weight from the file. Prints one JSON object: seconds and the
largest resident set of each process, mapped pages counted. The files are removed at the end unless --keep is given.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PIECE = 1 << 20  # elements written at once
RUN = """
import sys, numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
i = Interpreter(model_path=sys.argv[1], experimental_op_resolver_type=kind)
i.allocate_tensors()
i.set_tensor(i.get_input_details()[0]["index"], np.load(sys.argv[2]))
i.invoke()
np.save(sys.argv[3], i.get_tensor(i.get_output_details()[0]["index"]))
"""


def measured(command: list[str]) -> dict[str, Any]:
    """Seconds on the clock and of the processor, the largest resident set in megabytes, and the exit code of one
    process."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "exit_code": process.returncode,
    }


def write_model(path: Path, size: int, layers: int) -> int:
    """A chain of `layers` MatMul, Add and Tanh with weights of [width, width], external; returns the width."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    width = math.isqrt(size // (4 * layers))
    data = path.with_name(path.name + ".data")
    graph = onnx.GraphProto(name="big")
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, width]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, width]))
    rng = np.random.default_rng(0)
    with open(data, "wb") as file:

        def weight(name: str, shape: tuple[int, ...], scale: float) -> None:
            file.write(bytes(-file.tell() % 4096))
            offset, count = file.tell(), math.prod(shape)
            for start in range(0, count, PIECE):
                values = rng.standard_normal(min(PIECE, count - start), np.float32)
                file.write((values * np.float32(scale)).data)
            tensor = graph.initializer.add(
                name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
            )
            for key, value in (("location", data.name), ("offset", offset), ("length", 4 * count)):
                tensor.external_data.add(key=key, value=str(value))

        before = "x"
        for i in range(layers):
            weight(f"w{i}", (width, width), width**-0.5)
            weight(f"b{i}", (width,), 0.1)
            after = "y" if i == layers - 1 else f"h{i}"
            graph.node.append(helper.make_node("MatMul", [before, f"w{i}"], [f"p{i}"], name=f"product{i}"))
            graph.node.append(helper.make_node("Add", [f"p{i}", f"b{i}"], [f"s{i}"], name=f"sum{i}"))
            graph.node.append(helper.make_node("Tanh", [f"s{i}"], [after], name=f"tanh{i}"))
            before = after
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return width


def expected(path: Path, x: Any, width: int, layers: int) -> Any:
    """What the chain makes of `x`, in float64, a weight at a time."""
    import numpy as np
    import onnx

    model = onnx.load(os.fspath(path), load_external_data=False)
    places = {
        t.name: int({e.key: e.value for e in t.external_data}["offset"]) for t in model.graph.initializer
    }
    value = x.astype(np.float64)
    data = path.with_name(path.name + ".data")
    for i in range(layers):
        w = np.fromfile(data, np.float32, width * width, offset=places[f"w{i}"]).reshape(width, width)
        b = np.fromfile(data, np.float32, width, offset=places[f"b{i}"])
        value = np.tanh(value @ w + b)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--quantize", help="the scheme of the export")
    parser.add_argument("--verify", action="store_true", help="let the export verify as well")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--write-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    source, artifact = folder / "big.onnx", folder / "big.tflite"
    size = int(options.gigabytes * 1e9)
    if options.write_only:
        write_model(source, size, options.layers)
        return
    result: dict[str, Any] = {}
    # A process inherits the peak of the one that starts it: nothing large is done in this one before the end.
    if not source.exists():
        result["write"] = measured([sys.executable, __file__, *sys.argv[1:], "--write-only"])
    tool = str(Path(sys.executable).parent / "tapeout")
    check = [] if options.verify else ["--no-verify"]
    check += ["--quantize", options.quantize] if options.quantize else []
    result["export"] = measured([tool, "export", str(source), "-o", str(artifact), *check])
    width = math.isqrt(size // (4 * options.layers))
    # The input comes from a process of its own, for the same reason.
    made, found = folder / "x.npy", folder / "y.npy"
    draw = (
        f"import numpy as np; rng = np.random.default_rng(1); "
        f"np.save({str(made)!r}, rng.standard_normal((2, {width}), np.float32))"
    )
    subprocess.run([sys.executable, "-c", draw], check=True)
    result["run"] = measured([sys.executable, "-c", RUN, str(artifact), str(made), str(found)])

    import numpy as np

    right = expected(source, np.load(made), width, options.layers)
    result["largest_error"] = float(np.abs(np.load(found) - right).max() / np.abs(right).max())
    result["model_bytes"] = source.with_name("big.onnx.data").stat().st_size
    result["artifact_bytes"] = artifact.stat().st_size
    print(json.dumps(result, indent=1))
    if not options.keep:
        for path in (source, source.with_name("big.onnx.data"), artifact, made, found):
            path.unlink(missing_ok=True)
        for suffix in (".manifest.json", ".report.json"):
            artifact.with_name(artifact.name + suffix).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
