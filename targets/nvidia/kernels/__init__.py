"""Kernels: Triton sources made for launches, compiled ahead of time, without a GPU."""
