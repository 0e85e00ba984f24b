"""Canonical form: constants computed, shapes stated, what does nothing gone, what is there twice there
once."""

from tapeout.compiler.pipeline import Pass
from tapeout.compiler.rewriting import Rewrite
from tapeout.passes.canonicalize.casts import CASTS
from tapeout.passes.canonicalize.clips import CLIPS
from tapeout.passes.canonicalize.cse import merge_duplicates
from tapeout.passes.canonicalize.folding import FoldConstants
from tapeout.passes.canonicalize.identities import IDENTITIES
from tapeout.passes.canonicalize.shape_arithmetic import SHAPES

SIMPLIFY = Rewrite("simplify", (*IDENTITIES, *CASTS, *CLIPS, *SHAPES))

# The second folding computes what moved in front of a constant's Cast, and what merged constants decide.
CANONICALIZE: tuple[Pass, ...] = (FoldConstants(), SIMPLIFY, merge_duplicates, FoldConstants())

__all__ = ["CANONICALIZE", "SIMPLIFY", "FoldConstants", "merge_duplicates"]
