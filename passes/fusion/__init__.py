"""Fusion: what exporters spell out, as the operators meant; constants folded into weights."""

from tapeout.passes.fusion.activation import ACTIVATION

FUSION = (ACTIVATION,)
