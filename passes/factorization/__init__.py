"""Layers as products of smaller ones: which ranks, and what puts them in the graph."""

from tapeout.passes.factorization.factorize import METHODS, Factorize, Way

__all__ = ["METHODS", "Factorize", "Way"]
