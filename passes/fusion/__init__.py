"""Fusion: what exporters spell out, as the operators meant; constants folded into weights."""

from tapeout.passes.fusion.activation import ACTIVATION
from tapeout.passes.fusion.affine import AFFINE
from tapeout.passes.fusion.attention import ATTENTION
from tapeout.passes.fusion.normalization import NORMALIZATION
from tapeout.passes.fusion.padding import PADDING
from tapeout.passes.fusion.upsampling import UPSAMPLING

FUSION = (ACTIVATION, NORMALIZATION, UPSAMPLING, ATTENTION, AFFINE, PADDING)
