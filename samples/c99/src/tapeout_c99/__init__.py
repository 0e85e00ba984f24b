"""A target for microcontrollers: int8 networks as plain C99, all memory planned, run on the host or a Cortex-M."""

from pathlib import Path

from tapeout import sdk
from tapeout_c99.emit import emit
from tapeout_c99.run import runners


@sdk.quantity("c99.fused", "a kernel in front that computes it along")
def fused(call: sdk.Call) -> bool:
    """True where an activation stands alone behind a kernel that fuses it."""
    made = call.input(0).producer()
    fusing = ("ConvNHWC", "FullyConnected", "AveragePoolNHWC", "MaxPoolNHWC", "Add")
    return made is not None and made.op_type in fusing and sdk.graph.only_use(call.input(0)) is call.node


declaration = sdk.declarations(Path(__file__).with_name("target.toml"), (fused,))
TARGET = sdk.Target(
    name="c99",
    suffix=".c",
    parts=(".h",),
    schemes=("int8",),
    devices=("host", "cortex-m"),
    declaration=declaration,
    passes=lambda request: sdk.standard_passes(request, declaration(request.device), channels_last=True),
    emit=lambda model, sink, request, header: emit(model, sink, header, declaration(request.device)),
    runners=runners,
    integer_borders=True,
)
