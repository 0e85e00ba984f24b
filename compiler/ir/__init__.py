"""The graph IR: ONNX under conventions of ours, loaded safely, always valid, always runnable."""
