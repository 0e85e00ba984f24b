"""Front ends: models of other frameworks in, an ONNX file that is proven to compute the same out."""
