"""Scores .onnx and .tflite files of the sample on its held-back pictures.

python samples/shapes/score.py FILE... EVAL.npz
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def opened(path: str) -> Callable[[Array], Array]:
    """The model in `path` as a function from pictures [N, 1, 32, 32] to probabilities [N, 3]."""
    if path.endswith(".tflite"):
        from ai_edge_litert.interpreter import Interpreter

        run = Interpreter(path).get_signature_runner()
        return lambda images: np.concatenate(
            [run(image=images[k : k + 1])["probabilities"] for k in range(len(images))]
        )
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {"image": images})[0])


def main() -> None:
    *paths, data = sys.argv[1:]
    arrays = np.load(data)
    for path in paths:
        right = opened(path)(arrays["image"]).argmax(1) == arrays["label"]
        print(f"{path}: accuracy {right.mean():.3f} on {len(right)} pictures")


if __name__ == "__main__":
    main()
