"""The channels-last operators, functions of our domain: each is `Transpose -> ONNX operator -> Transpose`.

    ConvNHWC(X: N,H,W,C   W: O,KH,KW,I/group   B: O)            with D too: ConvNDHWC
    ConvTransposeNHWC(X: N,H,W,C   W: O/group,KH,KW,I   B: O)   W as in TFLite's TRANSPOSE_CONV
    MaxPoolNHWC, AveragePoolNHWC, LRNNHWC, DepthToSpaceNHWC, SpaceToDepthNHWC (X: N,H,W,C)

Attributes are the ONNX operator's, pads and strides over the spatial axes as there.
"""

from __future__ import annotations

import onnx_ir as ir

from tapeout.compiler.ir.functions import DOMAIN, declare

_STANDARD = {
    "Conv": ("strides", "dilations", "pads", "group", "auto_pad"),
    "ConvTranspose": ("strides", "dilations", "pads", "group", "auto_pad", "output_padding", "output_shape"),
    "MaxPool": ("kernel_shape", "strides", "dilations", "pads", "ceil_mode", "auto_pad"),
    "AveragePool": (
        "kernel_shape", "strides", "dilations", "pads", "count_include_pad", "ceil_mode", "auto_pad",
    ),
    "LRN": ("alpha", "beta", "bias", "size"),
    "DepthToSpace": ("blocksize", "mode"),
    "SpaceToDepth": ("blocksize",),
}  # fmt: skip
_KINDS = {
    "strides": "ints", "dilations": "ints", "pads": "ints", "group": "int", "auto_pad": "string",
    "output_padding": "ints", "output_shape": "ints", "kernel_shape": "ints", "ceil_mode": "int",
    "count_include_pad": "int", "alpha": "float", "beta": "float", "bias": "float", "size": "int",
    "blocksize": "int", "mode": "string",
}  # fmt: skip

LAST = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}  # NCHW -> NHWC, NCDHW -> NDHWC
FIRST = {4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}  # and back
# How the stored weight is made from ONNX's: [O, I/group, ...] and, transposed, [I, O/group, ...].
WEIGHTS = {"Conv": LAST, "ConvTranspose": {4: (1, 2, 3, 0), 5: (1, 2, 3, 4, 0)}}
_WEIGHTS_BACK = {"Conv": FIRST, "ConvTranspose": {4: (3, 0, 1, 2), 5: (4, 0, 1, 2, 3)}}

RANKS = {op: (4, 5) if "Conv" in op or "Pool" in op else (4,) for op in _STANDARD}


def name(op_type: str, rank: int) -> str:
    """The channels-last form of an ONNX operator: ("Conv", 4) -> "ConvNHWC"."""
    return op_type + ("NHWC" if rank == 4 else "NDHWC")


def attributes(op_type: str) -> tuple[str, ...]:
    """The attributes that the channels-last form of `op_type` takes."""
    return _STANDARD[op_type]


def text(op_type: str, rank: int) -> str:
    """The function's specification in ONNX's text syntax."""
    keys = _STANDARD[op_type]
    passed = ", ".join(f"{k}: {_KINDS[k]} = @{k}" for k in keys)
    weighted = op_type in WEIGHTS
    inputs = "X, W, B" if weighted else "X"
    weight = f"  w = Transpose <perm = {list(_WEIGHTS_BACK[op_type][rank])}> (W)\n" if weighted else ""
    called = "x, w, B" if weighted else "x"
    return (
        f'<domain: "{DOMAIN}", opset_import: ["" : 25]>\n'
        f"{name(op_type, rank)} <{', '.join(keys)}> ({inputs}) => (Y)\n{{\n"
        f"  x = Transpose <perm = {list(FIRST[rank])}> (X)\n{weight}"
        f"  y = {op_type} <{passed}> ({called})\n"
        f"  Y = Transpose <perm = {list(LAST[rank])}> (y)\n}}"
    )


def convert(model: ir.Model, node: ir.Node, rank: int) -> None:
    """Let `node`, an ONNX operator, call the channels-last form; its inputs are rearranged by the caller."""
    op_type = node.op_type
    declare(model, text(op_type, rank))
    for key in [k for k in node.attributes if k not in _STANDARD[op_type]]:
        del node.attributes[key]
    node.op_type, node.domain = name(op_type, rank), DOMAIN
    node.version = None
