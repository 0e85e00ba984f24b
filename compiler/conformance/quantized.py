"""Random graphs that a target turns into integers: the whole road, from calibration to the runner.

No two right runtimes agree on integers end to end, for one quantum early on moves everything behind it. So every
kernel of the artifact is held to the quanta of its row's bound on the integers that the artifact itself computed
before it, as far as the runner shows them; and the outputs to the noise that rounding explains. The rate of a bound
is for data that are drawn for it (`generated.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeout.compiler.conformance.case import Array, Case
from tapeout.compiler.schemes import STATIC, borders, levels

if TYPE_CHECKING:
    import onnx_ir as ir

    from tapeout.compiler.declaration import Declaration
    from tapeout.compiler.target import Request, Target

# RMS(device - source) is at most so many times RMS(graph - source), and so many steps of the output more for each
# quantum of the widest bound: a random graph has few elements, of which one may fall on the other side of a rounding
# early on.
NOISE, STEPS = 4.0, 2.0
SHARES = (1.0, 0.9, 0.8, 0.7)  # of a case's inputs, as calibration data: four samples are the least


def is_quantized(case: Case) -> bool:
    """Whether the target is to quantize the case's model."""
    return case.scheme in STATIC and not case.legalized


def calibrated(request: Request, case: Case, target: Target) -> Request:
    """`request` with the case's own inputs as calibration data: ranges are found, no choice is made by them."""
    import onnx

    from tapeout.compiler.calibration import Calibration
    from tapeout.compiler.ir.load import from_proto

    model = from_proto(onnx.ModelProto.FromString(case.model))
    samples = [{k: (v * share).astype(v.dtype) for k, v in case.inputs.items()} for share in SHARES]
    data = Calibration(lambda: samples, model, jobs=1)
    data.stand_in = True
    values = (*model.graph.inputs, *model.graph.outputs)
    return replace(
        request, calibration=data, dtypes=borders(case.scheme, values) if target.integer_borders else {}
    )


def difference_in_integers(case: Case, model: ir.Model, rows: Declaration, runner: Any) -> str | None:
    """Where an artifact of `model`, as the target's passes left it, is wrong; else None."""
    from tapeout.compiler.cluster_check import check_inside, cut_clusters
    from tapeout.compiler.comparison import holders_of
    from tapeout.compiler.reference import Reference

    grids = {h.source: h.grid for h in holders_of(model) if h.tensor == h.source and h.grid is not None}
    feed = {k: grids[k].codes(v) if k in grids else v for k, v in case.inputs.items()}
    found, again = runner.run(feed), runner.run(feed)
    with Reference(model, threads=1) as reference:
        graph = reference.run(feed, list(case.outputs))
    for name, source in case.outputs.items():
        if name not in found or (found[name].shape, found[name].dtype) != (source.shape, graph[name].dtype):
            there = f"{found[name].dtype}{list(found[name].shape)}" if name in found else "missing"
            return f"output '{name}' is {there}, expected {graph[name].dtype}{list(source.shape)}"
        if not np.array_equal(found[name], again[name]):
            return f"'{name}' is another one when the artifact runs again"
    for kernel in check_inside(model, rows, runner, feed):
        if (
            kernel.quanta > kernel.row.bound.quanta
        ):  # at whatever rate: scales that fit make ties of every other sum
            return kernel.text()
    worst = max((1, *(cut.row.bound.quanta for cut in cut_clusters(model, rows))))
    for name, source in case.outputs.items():
        made, right = (grids[name].real(a[name]) if name in grids else a[name] for a in (found, graph))
        far, near = _rms(made - source), _rms(right - source)
        step = 2 * float(np.abs(source).max(initial=0.0)) / _codes(case.scheme)
        if not far <= NOISE * near + STEPS * worst * step:
            return f"'{name}' is {far:.2e} from the source, the graph in ONNX Runtime {near:.2e}"
    return None


def _codes(scheme: str) -> int:
    act = STATIC[scheme].act
    assert act is not None
    low, high = levels(act)
    return high - low


def _rms(error: Array) -> float:
    return float(np.sqrt(np.mean(np.square(error.astype(np.float64))))) if error.size else 0.0
