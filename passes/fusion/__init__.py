"""Fusion: what exporters spell out, as the operators meant; constants folded into weights."""

from tapeout.passes.fusion.activation import ACTIVATION
from tapeout.passes.fusion.affine import AFFINE

FUSION = (ACTIVATION, AFFINE)
