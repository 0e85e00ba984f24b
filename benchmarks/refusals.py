"""Counts what refusals carry: the source node, the constraint, the value found and a fix.

    python benchmarks/refusals.py [TARGET[:DEVICE] ...] [--every N] [--outside 1000] [--json F]

Over ONNX's own node cases (each through the target's passes, as far as the first refusal) and over cases generated
just outside the target's declaration. Nothing is run on a device. Exit code 1 where a refusal lacks one of the four.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from tapeout.compiler import pipeline
from tapeout.compiler.conformance.generated import Generator, outside
from tapeout.compiler.conformance.standard import cases
from tapeout.compiler.declaration import Refusal
from tapeout.compiler.errors import TapeoutError, UnsupportedError
from tapeout.compiler.explanation import incomplete
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.target import Request, Target
from tapeout.road import choose


@dataclass
class Count:
    """The refusals of one target over one kind of cases."""

    cases: int = 0
    refused_cases: int = 0
    refusals: int = 0
    complete: int = 0
    lacking: list[str] = field(default_factory=list)
    before: Counter[str] = field(default_factory=Counter)  # refused before rows are asked, by message
    constraints: Counter[str] = field(default_factory=Counter)

    def add(self, refused: list[Refusal], name: str) -> None:
        self.cases += 1
        self.refused_cases += bool(refused)
        for refusal in refused:
            self.refusals += 1
            lacks = incomplete(refusal)
            self.complete += lacks is None
            if lacks is not None:
                self.lacking.append(f"{name}: {lacks}: {refusal}")
            self.constraints.update(v.what for v in refusal.constraints())

    def stopped(self, error: TapeoutError, name: str) -> None:
        """A model that does not come as far as the rows."""
        self.cases += 1
        self.refused_cases += 1
        self.refusals += 1
        broken = error.violations if isinstance(error, UnsupportedError) else ()
        lacks = "no source node" if not error.nodes else None if broken else "no constraint"
        for violation in broken:
            lacks = lacks or next((f"no {key}" for key, said in violation.items() if not said), None)
        self.complete += lacks is None
        if lacks is not None:
            self.lacking.append(f"{name}: {lacks}: {error.message}")
        self.before[error.message.splitlines()[0][:120]] += 1


def node_cases(chosen: Target, request: Request, every: int) -> Count:
    count = Count()
    for case in cases(every=every):
        try:
            model = from_proto(onnx.ModelProto.FromString(case.model))
            pipeline.run(model, chosen.passes(request))
            count.add(chosen.declaration(request.device).accept(model).refused, case.name)
        except TapeoutError as error:
            count.stopped(error, case.name)
    return count


def outside_cases(chosen: Target, request: Request, number: int) -> Count:
    count = Count()
    declaration = chosen.declaration(request.device)
    for made in outside(Generator(declaration, request.device), number):
        model = from_proto(onnx.ModelProto.FromString(made.case.model))
        count.add(declaration.accept(model).refused, made.case.name)
    return count


def kinds(names: list[str]) -> Iterator[tuple[str, Target, Request]]:
    for name in names:
        one, _, device = name.partition(":")
        chosen, request = choose(one, device or None, None, None)
        if chosen.extends is not None or "float32" not in chosen.schemes:
            request = Request("float32", request.device)  # asked in real numbers, its rows are what refuses
        yield name, chosen, request


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", default=["tflite", "openvino", "ethos-u:ethos-u55-128"])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--outside", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    lacking = 0
    for name, chosen, request in kinds(given.targets):
        for kind, make in (
            ("node cases", lambda c, r: node_cases(c, r, given.every)),
            ("outside", lambda c, r: outside_cases(c, r, given.outside)),
        ):
            start = time.process_time()
            count: Count = make(chosen, request)
            lacking += count.refusals - count.complete
            print(
                f"{name}, {kind}: {count.cases} cases, {count.refused_cases} refused; {count.refusals} refusals, "
                f"{count.complete} carry node, constraint, value and fix; {sum(count.before.values())} stopped "
                f"before the rows ({time.process_time() - start:.0f} s)"
            )
            for line in [*count.lacking[:10], *(f"{n} x {m}" for m, n in count.before.most_common(10))]:
                print(f"    {line}")
            found[f"{name}, {kind}"] = {
                "cases": count.cases, "refused": count.refused_cases, "refusals": count.refusals,
                "complete": count.complete, "before": dict(count.before),
                "constraints": dict(count.constraints.most_common()),
            }  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(lacking > 0)


if __name__ == "__main__":
    sys.exit(main())
