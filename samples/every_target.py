"""Takes a model to every target that is installed, and holds each artifact against what the framework computed.

    python samples/every_target.py MODEL FOLDER OUT

FOLDER is what a sample's train.py wrote: `data.npz` (inputs, also for calibration) and `expected.npz` (`image`,
`label`, `probabilities`). Targets that compute in floats run their artifact on their own runtime here; of targets that
take integers alone, whose artifact only their hardware runs, the export's own proof is told: what was emitted, run on
the CPU and held against the source. A target that does not take the model, or whose tool is missing, says so. It ends
with exit code 1 where an artifact is off: floats by more than 1e-4 of the largest probability, integers in any
decision or by less than 20 dB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import tapeout
from tapeout.compiler.errors import UnsupportedError, VendorToolError
from tapeout.compiler.target import Request, loadable

FLOAT_ERROR = 1e-4
# Pictures at a time: engines are made for a range of batches.
BATCH = 25
GATES = {"argmax": 1.0, "sqnr": 20.0}


def main() -> None:
    model, folder, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    expected = np.load(folder / "expected.npz")
    wanted = expected["probabilities"]
    good = True
    for target in loadable()[0]:
        path = out / target.name / f"{model.stem}{target.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if "float32" not in target.schemes:
            scheme, data = target.schemes[0], folder / "data.npz"
            try:
                done = tapeout.export(
                    model, target.name, output=path, quantize=scheme, calibration=data, data=data, gates=GATES
                )
            except (UnsupportedError, VendorToolError) as error:
                print(f"{target.name}: {error.message.splitlines()[0]}")
                continue
            for line in done.report["verification"]["outputs"]:
                print(
                    f"{target.name}: {scheme} on {line['runtime']} decides as the source, {line['sqnr']:.1f} dB"
                )
            continue
        done = tapeout.export(model, target.name, output=path, data=folder / "data.npz")
        (given,) = (v["name"] for v in done.manifest["interface"]["inputs"])
        for runner in target.runners(path, Request("float32", target.devices[0])):
            parts = [
                runner.run({given: p}) for p in np.split(expected["image"], range(BATCH, len(wanted), BATCH))
            ]
            made = np.concatenate([array for part in parts for array in part.values()])
            error = float(np.abs(made - wanted).max() / np.abs(wanted).max())
            same = np.mean(made.argmax(1) == expected["label"])
            good &= error <= FLOAT_ERROR
            print(f"{target.name}: {runner.runtime} is off by {error:.1e} at most; accuracy {same:.3f}")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
