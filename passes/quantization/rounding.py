"""Algorithms that choose the codes and biases of quantized products, each by itself or together.

BiasCorrection   codes as they are; the bias makes good what quantization does to the outputs' means
Gptq             codes by GPTQ for the quantized model's inputs, with or without correction of what earlier
                 layers have lost
AdaRound         each weight rounded up or down as learned by gradients
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeout.passes.quantization.gptq import factor, gptq, toward, truncated
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


@dataclass(frozen=True)
class AdaRound:
    """Each weight rounded up or down so that the outputs keep, after M. Nagel et al., Up or Down? (ICML 2020).

        min over V of tr(D H D') + a(t) sum(1 - |2 h(V) - 1|^b(t)),   D = W - s (floor(W / s) + h(V)),  H = E[x x']

    h is the stretched sigmoid of the paper, b falls from `hard` to 2, Adam takes `steps`. Products that would take
    more than `work` multiplications a step, and those of fewer than `inputs` inputs, are not offered anything.
    """

    steps: int = 150
    work: float = 6e5
    inputs: int = 24
    hard: float = 20.0
    name: str = "adaround"

    def offer(self, problem: Problem) -> Iterator[Candidate]:
        size = problem.weight.shape[1]
        if size < self.inputs or problem.weight.shape[0] * float(size) ** 2 > self.work:
            return
        rows = problem.inputs - _mean(problem.inputs)
        hessian = rows.T @ rows
        if hessian.any():
            yield Candidate(self._codes(problem, hessian / max(len(rows), 1)), True)

    def _codes(self, problem: Problem, hessian: Array) -> Array:
        scale = problem.scale[:, None]
        below = np.floor(problem.weight / scale)
        rest = np.clip(problem.weight / scale - below, 1e-3, 1 - 1e-3)
        soft = -np.log((1.2 / (rest + 0.1)) - 1)  # h(soft) = rest
        # Errors in levels, of inputs as large as 1: the same steps serve every product.
        moments = hessian / float(np.diag(hessian).mean())
        first, second = np.zeros_like(soft), np.zeros_like(soft)
        for step in range(1, self.steps + 1):
            share = step / self.steps
            plain = 1 / (1 + np.exp(-soft))
            stretched = 1.2 * plain - 0.1
            inside = (stretched > 0) & (stretched < 1)
            up = np.clip(stretched, 0, 1)
            slope = truncated(2 * (up - rest) @ moments)
            if share > 0.2:
                power = 2 + (self.hard - 2) * 0.5 * (1 + np.cos(np.pi * (share - 0.2) / 0.8))
                far = 2 * up - 1
                slope -= 0.05 * 2 * power * np.abs(far) ** (power - 1) * np.sign(far)
            slope *= inside * 1.2 * plain * (1 - plain)
            first = 0.9 * first + 0.1 * slope
            second = 0.99 * second + 0.01 * slope**2
            moved = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
            soft = soft - 0.05 * moved
        codes = below + (soft > 0)
        return np.asarray(np.clip(codes, -problem.highest, problem.highest))


def _mean(rows: Array) -> Array:
    """The mean of each input, a whole number as the rows are, so that sums of products stay exact."""
    return np.asarray(np.rint(rows.mean(0)))
