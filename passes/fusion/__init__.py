"""Fusion: regions that exporters spell out, as the operators that they mean; constants folded into weights."""

from tapeout.passes.fusion.activation import ACTIVATION

FUSION = (ACTIVATION,)
