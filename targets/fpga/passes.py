"""The road of a model to integers, as one visible tuple."""

from __future__ import annotations

import onnx_ir as ir

from tapeout.sdk import Changes, Pass, Quantize, Request, UnsupportedError, standard_passes
from tapeout.sdk import graph as g
from tapeout.targets.fpga import declaration

# What the host may finish with is left whole, so that messages name it and `--fallback host` keeps it together.
TAIL = ("Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "TopK")


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order: channels last, since streams are."""
    steps = standard_passes(request, declaration(request.device), keep=TAIL, channels_last=True)
    return (fixed_sizes, *(refined_as_asked(step, request) for step in steps))


def refined_as_asked(step: Pass, request: Request) -> Pass:
    """A quantizer that rounds, shifts and equalizes by the calibration data; scales that are powers of two stay so."""
    if not isinstance(step, Quantize) or step.scheme.powers:
        return step
    from tapeout.passes.quantization.refined import OPTION, refined

    return refined(step, request.calibration, request.options.get(OPTION, "auto"), integers_only=True)


def fixed_sizes(model: ir.Model) -> Changes:
    """Raises UnsupportedError where an input has a free size: a circuit is built for one."""
    free = {v.name or "": g.dims(v) or () for v in model.graph.inputs if g.static_dims(v) is None}
    if not free:
        return Changes(0)
    lines = [f"  '{name}': [{', '.join(map(str, dims))}]" for name, dims in free.items()]
    asked = " ".join(
        f"--shape {name}={','.join(str(d) if isinstance(d, int) else '1' for d in dims)}"
        for name, dims in free.items()
    )
    readers = [u.node for v in model.graph.inputs if v.name in free for u in v.uses()]
    raise UnsupportedError(
        "\n".join(["a circuit has fixed sizes, and the model has inputs with free ones:", *lines]),
        hint=f"state them, with a batch of 1: {asked}",
        nodes=[n.name or "" for n in readers],
    )
