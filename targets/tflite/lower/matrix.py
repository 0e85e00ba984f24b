"""Matrix products: FULLY_CONNECTED by a constant, BATCH_MATMUL of two computed tensors."""

from __future__ import annotations

import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import Builder, Lowering
from tapeout.targets.tflite.lower.convolution import operands


def fully_connected(b: Builder, node: ir.Node) -> None:
    """tapeout::FullyConnected: X [...,I], W [O,I], B [O] -> [...,O]."""
    output, activation = b.fused(node)
    options = s.FullyConnectedOptionsT()
    options.keepNumDims = g.rank(node.inputs[0]) != 2
    options.fusedActivationFunction = activation
    x, w, bias = operands(b, node)
    # Beside stored weights the kernel rounds real activations; without this, resolvers disagree on how.
    options.asymmetricQuantizeInputs = (
        b.storage(node.inputs[1]).quantized and not b.storage(node.inputs[0]).quantized
    )
    b.operator("FULLY_CONNECTED", [x, w, bias], [output], options)


def batch_matmul(b: Builder, node: ir.Node) -> None:
    """A [...,M,K] by B [...,K,N]; leading dimensions broadcast."""
    b.operator("BATCH_MATMUL", node.inputs, node.outputs, s.BatchMatMulOptionsT())


LOWERINGS: dict[str, Lowering] = {"FULLY_CONNECTED": fully_connected, "BATCH_MATMUL": batch_matmul}
