"""Algorithms that choose the codes and biases of quantized products, each by itself or together.

BiasCorrection   codes as they are; the bias makes good what quantization does to the outputs' means
Gptq             codes by GPTQ for the quantized model's inputs, with or without correction of what earlier
                 layers have lost
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeout.passes.quantization.gptq import factor, gptq, toward
from tapeout.passes.quantization.layers import Candidate, Problem

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BiasCorrection:
    """b' = b + E[W x_float] - E[W_q x], after M. Nagel et al., Data-Free Quantization (ICCV 2019), measured."""

    name: str = "bias-correction"

    def offer(self, problem: Problem) -> Iterator[Candidate]:
        yield Candidate(problem.codes, True)


@dataclass(frozen=True)
class Gptq:
    """GPTQ for the inputs that the quantized model makes; `upstream` also offers codes that undo earlier loss."""

    upstream: bool = True
    name: str = "gptq"

    def offer(self, problem: Problem) -> Iterator[Candidate]:
        inputs = problem.inputs - _mean(problem.inputs)
        wanted = problem.wanted - _mean(problem.wanted)
        hessian = inputs.T @ inputs
        if not hessian.any():
            return
        known = factor(hessian)
        yield Candidate(gptq(problem.weight, known, problem.scale, problem.highest), True)
        if self.upstream:
            weight = toward(problem.weight, wanted, inputs, hessian)
            yield Candidate(gptq(weight, known, problem.scale, problem.highest), True)


def _mean(rows: Array) -> Array:
    """The mean of each input, a whole number as the rows are, so that sums of products stay exact."""
    return np.asarray(np.rint(rows.mean(0)))
