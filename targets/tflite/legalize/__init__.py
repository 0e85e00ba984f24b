"""Plain ONNX to the plain ONNX that TFLite has kernels for; every module states its algebra."""
