"""What every floor above stands on: the graph, its checks, rewriting, declarations, verification."""

from tapeout.compiler.deferred import import_onnx_ir

import_onnx_ir()
