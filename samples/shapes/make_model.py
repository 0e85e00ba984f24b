"""Trains a small network that tells circles, squares and triangles apart, and writes it as ONNX.

    python samples/shapes/make_model.py FOLDER

Two convolutions with fixed random filters, pooling, and a head fitted by least squares: trained in seconds with
numpy alone. Writes shapes.onnx, shapes_data.npz (inputs for `--data`) and shapes_eval.npz (inputs and labels).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from pictures import SIZE, pictures

CLASSES = 3
Array = np.ndarray[Any, Any]


def network(head: Array, bias: Array, rng: np.random.Generator) -> onnx.ModelProto:
    """The ONNX model; with an empty `head` it ends at the features that the head is fitted on."""
    weights = {
        "conv1.weight": rng.normal(size=(32, 1, 5, 5)) / 5,
        "conv1.bias": rng.normal(size=32) * 0.1,
        "conv2.weight": rng.normal(size=(96, 32, 3, 3)) / 17,
        "conv2.bias": rng.normal(size=96) * 0.1,
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv1.weight", "conv1.bias"], ["c1"], "conv1", pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "conv2.weight", "conv2.bias"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("AveragePool", ["r2"], ["p2"], "pool2", kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p2"], ["features"], "flatten"),
    ]
    output, width = "features", 96 * 16
    if head.size:
        weights |= {"head.weight": head, "head.bias": bias}
        nodes += [
            helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], "head"),
            helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax"),
        ]
        output, width = "probabilities", CLASSES
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, images: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def main() -> None:
    folder = Path(sys.argv[1])
    train_x, train_y = pictures(3000, np.random.default_rng(1))
    eval_x, eval_y = pictures(500, np.random.default_rng(2))
    features = run(network(np.empty(0), np.empty(0), np.random.default_rng(0)), train_x).astype(np.float64)
    centre = features.mean(axis=0)
    shifted = features - centre
    goals = 8.0 * (np.eye(CLASSES)[train_y] - 1 / CLASSES)
    head = np.linalg.solve(shifted.T @ shifted + 3.0 * np.eye(len(centre)), shifted.T @ goals)
    model = network(head, -centre @ head, np.random.default_rng(0))
    accuracy = float(np.mean(run(model, eval_x).argmax(1) == eval_y))
    onnx.save(model, folder / "shapes.onnx")
    np.savez(folder / "shapes_data.npz", image=eval_x[:16])
    np.savez(folder / "shapes_eval.npz", image=eval_x, label=eval_y)
    size = (folder / "shapes.onnx").stat().st_size // 1024
    print(f"shapes.onnx: {size} KB, accuracy {accuracy:.3f} on 500 new pictures")


if __name__ == "__main__":
    main()
