"""The FPGA target: verified circuits from a quantized graph."""
