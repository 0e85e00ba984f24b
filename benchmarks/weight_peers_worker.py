"""Weights in 4 bits, groups of 32, by NNCF's AWQ and ONNX Runtime's HQQ; runs where those are installed.

    python weight_peers_worker.py MODEL CALIBRATION.npz FOLDER

Writes FOLDER/awq.onnx and FOLDER/hqq.onnx, or FOLDER/NAME.error with the reason why there is none.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def awq(model: Path, data: dict[str, Any], made: Path) -> None:
    import nncf
    import onnx

    count = len(next(iter(data.values())))
    from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

    samples = [{k: v[i : i + 1] for k, v in data.items()} for i in range(count)]
    found = nncf.compress_weights(
        onnx.load(model),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        ratio=1.0,
        group_size=32,
        all_layers=True,
        ignored_scope=nncf.IgnoredScope(types=["Gather"], validate=False),  # it makes products of tables too
        dataset=nncf.Dataset(samples),
        awq=True,
        advanced_parameters=AdvancedCompressionParameters(
            group_size_fallback_mode=GroupSizeFallbackMode.IGNORE
        ),
    )
    onnx.save(found, made)


def hqq(model: Path, data: dict[str, Any], made: Path) -> None:
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    config = nbits.HQQWeightOnlyQuantConfig(block_size=32, bits=4)
    quantizer = nbits.MatMulNBitsQuantizer(
        onnx.load(model), block_size=32, accuracy_level=1, algo_config=config
    )
    quantizer.process()
    onnx.save(quantizer.model.model, made)


PEERS: dict[str, Callable[[Path, dict[str, Any], Path], None]] = {"awq": awq, "hqq": hqq}


def main() -> None:
    import numpy as np
    import onnx

    model, calibration, folder = (Path(a) for a in sys.argv[1:4])
    data = dict(np.load(calibration))
    for name, work in PEERS.items():
        try:
            work(model, data, folder / f"{name}.onnx")
            made = onnx.load(folder / f"{name}.onnx").graph.node
            if not any(n.op_type in ("MatMulNBits", "DequantizeLinear") for n in made):
                (folder / f"{name}.onnx").unlink()
                raise ValueError("the result is not quantized")
        except Exception as error:
            traceback.print_exc()
            (folder / f"{name}.error").write_text(f"{type(error).__name__}: {error}"[:500])


if __name__ == "__main__":
    main()
