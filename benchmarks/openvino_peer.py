"""What benchmarks/openvino_against_nncf.py has NNCF do, in an environment of its own with nncf and openvino.

python benchmarks/openvino_peer.py int8|int4|float MODEL.onnx CALIBRATION.npz OUT.xml
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def main() -> None:
    kind, model, data, out = sys.argv[1:]
    import openvino as ov

    made: Any = ov.convert_model(model)
    if kind == "int8":
        import nncf

        arrays = dict(np.load(data))
        names = list(arrays)
        count = len(arrays[names[0]])
        fixed = {next(iter(p.get_names())): p.get_partial_shape() for p in made.inputs}
        fixed = {n: shape for p, shape in fixed.items() for n in names if n == p}

        def sample(index: int) -> dict[str, Any]:
            found = {}
            for name in names:
                part = arrays[name][index]
                shape = fixed.get(name)
                found[name] = part if shape is not None and len(shape) == part.ndim else part[None]
            return found

        made = nncf.quantize(
            made,
            nncf.Dataset([sample(i) for i in range(count)]),
            subset_size=count,
            fast_bias_correction=True,
        )
    if kind == "int4":
        import nncf

        made = nncf.compress_weights(made, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=128, ratio=1.0)
    ov.save_model(made, out, compress_to_fp16=False)


if __name__ == "__main__":
    main()
