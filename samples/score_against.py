"""Holds a TFLite file against what the framework computed that its model was trained in.

    python samples/score_against.py FILE.tflite EXPECTED.npz

EXPECTED.npz holds `image`, `label` and `probabilities`; the largest difference and both accuracies are printed.
"""

from __future__ import annotations

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main() -> None:
    path, expected = sys.argv[1], np.load(sys.argv[2])
    run = Interpreter(path).get_signature_runner()
    images, labels, wanted = expected["image"], expected["label"], expected["probabilities"]
    found = np.concatenate([next(iter(run(image=images[k : k + 1]).values())) for k in range(len(images))])
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    accuracies = [float(np.mean(p.argmax(1) == labels)) for p in (wanted, found)]
    print(
        f"{path}: largest difference {error:.1e}; accuracy {accuracies[1]:.3f}, in the framework {accuracies[0]:.3f}"
    )


if __name__ == "__main__":
    main()
