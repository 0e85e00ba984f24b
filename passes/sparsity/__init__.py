"""Weights and channels that go: which, and how the rest makes it good."""

from tapeout.passes.sparsity.pattern import Pattern
from tapeout.passes.sparsity.prune import Prune, Way
from tapeout.passes.sparsity.structured import PruneChannels

__all__ = ["Pattern", "Prune", "PruneChannels", "Way"]
