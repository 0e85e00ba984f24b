"""NVIDIA GPUs: engines of our own, and the hand-over to TensorRT (in `tensorrt`)."""
