"""Decomposition: operators that a target has no kernel for, in simpler ones. Shared by all targets.

`Decompose(keep)` writes out every operator that is not in `keep` (a target passes the operators that its
declaration has rows for): by the rules here, and by the standard's own function bodies where there is none.
What depends on attributes or shapes is a pass of its own that a target names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tapeout.compiler.rewriting import Changes, Declined, Rewrite, Rule
from tapeout.passes.decompose.activations import ACTIVATIONS, EluOfOne
from tapeout.passes.decompose.attention import ATTENTION
from tapeout.passes.decompose.contraction import CONTRACTIONS, GeneralGemm
from tapeout.passes.decompose.elementary import ELEMENTARY
from tapeout.passes.decompose.fourier import FOURIER
from tapeout.passes.decompose.functions import ByDefinition, ExpandFunctions, defined
from tapeout.passes.decompose.normalizations import NORMALIZATIONS
from tapeout.passes.decompose.rearranging import DepthToSpaceByColumns, SoftmaxOnLastAxis
from tapeout.passes.decompose.resizing import ResizeByMatMul

RULES: tuple[Rule, ...] = (
    *ATTENTION, *NORMALIZATIONS, *ACTIVATIONS, *ELEMENTARY, *CONTRACTIONS, *FOURIER,
)  # fmt: skip

# Each leaves alone what is already in the simple form.
ELU_OF_ONE = Rewrite("elu-of-one", (EluOfOne(),))
SOFTMAX_ON_LAST_AXIS = Rewrite("softmax-on-last-axis", (SoftmaxOnLastAxis(),))
DEPTH_TO_SPACE_DCR = Rewrite("depth-to-space-dcr", (DepthToSpaceByColumns(),))
PLAIN_GEMM = Rewrite("plain-gemm", (GeneralGemm(),))
RESIZE_BY_MATMUL = Rewrite("resize-by-matmul", (ResizeByMatMul(),))


@dataclass(frozen=True)
class _Only(Rule):
    """`rule` on the op types that are not kept."""

    rule: Rule
    ops: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.rule.name

    def apply(self, node: ir.Node) -> ir.Node | str | None:
        return self.rule.apply(node)


@dataclass(frozen=True)
class Decompose:
    """Writes out every operator that is not in `keep`: by rule, else by its definition in the standard."""

    keep: frozenset[str] = frozenset()
    name: str = "decompose"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, and the definitions in the standard, of operators that are not kept."""
        rules = [_Only(r, tuple(o for o in r.ops if o not in self.keep)) for r in RULES]
        return (*rules, ByDefinition(tuple(sorted(defined() - self.keep))))

    def __call__(self, model: ir.Model) -> Changes:
        rules = [_Only(r, tuple(o for o in r.ops if o not in self.keep)) for r in RULES]
        ruled = {o for r in rules for o in r.ops}
        rewrite = Rewrite(self.name, tuple(r for r in rules if r.ops))
        bodies = ExpandFunctions(self.keep, self.name)
        present = {n.op_type for n in model.graph.all_nodes()}
        count = 0
        declined: tuple[Declined, ...] = ()
        while present - self.keep:
            changes = rewrite(model) if present & ruled else Changes(0)
            rest = bodies(model)
            count += changes.count + rest.count
            declined = (*changes.declined, *rest.declined)
            if not changes.count + rest.count:
                break
            present = {n.op_type for n in model.graph.all_nodes()}
        return Changes(count, declined)
