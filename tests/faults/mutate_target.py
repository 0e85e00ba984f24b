"""Plants faults in the TFLite plugin by script and asks the conformance kit for them.

    python -m tests.faults.mutate_target [--count 100] [--seed 0] [--json FILE]

Sites are enumerated from what the plugin emits for the kit's own cases and from its declaration's rows; of each
mutation operator as many are drawn by seed. A mutant is run on the cases of the kit that it can touch: all others
emit the same bytes. Mutants without a change of behaviour are not counted, with the reason.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.compiler.conformance import generated, graphs
from tapeout.compiler.conformance.case import Case
from tapeout.compiler.conformance.functions import harvest
from tapeout.compiler.conformance.generated import Generator, Made
from tapeout.compiler.conformance.levels import taken_since
from tapeout.compiler.conformance.running import in_integers, opened, request_of, run_case
from tapeout.compiler.declaration import Declaration, Refusal
from tapeout.compiler.errors import TapeoutError
from tapeout.compiler.states import states
from tapeout.compiler.target import Target, write
from tapeout.targets import tflite
from tapeout.targets.tflite import emit, writer
from tests.faults.mutants import Site, emission, rows

DEVICE = "cpu"
CASES = 3000  # as many as the kit makes by default
STATES = 10
PROBES = 24  # independent cases, with another seed, that tell whether a mutant does anything at all
SECONDS = 300.0
PLAIN = tflite.declaration


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: "caught", "missed", "equal" (it changes nothing), or "right" (what it takes more,
    the runtime computes rightly: no lie)."""

    site: Site
    status: str
    reason: str

    @property
    def counted(self) -> bool:
        return self.status in ("caught", "missed")


@dataclass
class Corpus:
    """The kit's cases, and for each site of the emission the numbers of the cases that it touches."""

    cases: list[Case]
    reach: dict[Site, list[int]]
    share: int


def corpus(count: int) -> Corpus:
    """The cases of the levels `generated` and `graphs` (those with state)."""
    declaration = PLAIN(DEVICE)
    harvest(tflite.TARGET, DEVICE, declaration)
    generator = Generator(declaration, DEVICE)
    cases = [m.case for m in generated.inside(generator, count) if isinstance(m, Made)]
    for number in range(STATES):
        found = graphs.graph(number, "float32", DEVICE, state=True)
        cases += [found[0]] if found is not None else []
    reach: dict[Site, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        for site in {site for site, _ in emission.sites(_file(case, tflite.TARGET))}:
            reach[site].append(index)
    return Corpus(cases, dict(reach), -(-count // len(generator.rows())))


def _file(case: Case, target: Target) -> writer.File:
    request = request_of(case, target)
    model = opened(case, target, request)
    return emit.build(model, PLAIN(DEVICE), states(model, request.options))


def emitting(site: Site) -> Target:
    """The plugin with a fault in its emission."""

    def spoiled(model: Any, sink: Any, request: Any) -> None:
        file = emit.build(model, PLAIN(DEVICE), states(model, request.options))
        emission.mutate(file, site)
        writer.write(file, sink)

    return replace(tflite.TARGET, emit=spoiled)


def declaring(site: Site) -> tuple[Target, Declaration]:
    """The plugin with a fault in its declaration."""
    made = rows.mutated(PLAIN(DEVICE), site)
    tflite.declaration = lambda device: made
    return replace(tflite.TARGET, declaration=lambda device: made), made


# --- one mutant ------------------------------------------------------------------------------------------------


def judge(site: Site, found: Corpus) -> Verdict:
    """Run the kit on the mutant; where it finds nothing, tell why."""
    if site.kind in (rows.OFF, rows.ACCEPTED, rows.DROPPED):
        return _judge_rows(site, found)
    target = emitting(site)
    for index in found.reach[site]:
        outcome, _ = run_case(found.cases[index], target)
        if outcome.fault:
            return Verdict(site, "caught", f"{outcome.status} {outcome.case}: {outcome.reason}"[:300])
    ops = sorted({found.cases[i].op for i in found.reach[site]})
    touched = 0
    for case in _probes(ops, PLAIN(DEVICE)):
        if not any(at == site for at, _ in emission.sites(_file(case, tflite.TARGET))):
            continue
        touched += 1
        if not _same(_results(case, tflite.TARGET), _results(case, target)):
            return Verdict(site, "missed", f"other numbers in {case.name} of the probes")
    return Verdict(
        site, "equal", f"bit for bit the same numbers in {touched} independent cases that it touches"
    )


def _judge_rows(site: Site, found: Corpus) -> Verdict:
    target, made = declaring(site)
    op = site.where.rpartition(" row ")[0] or site.where
    mutant = Generator(made, DEVICE)
    mine = found.share * len(mutant.rows([op]))
    try:
        for each in generated.inside(mutant, mine, [op]):
            if isinstance(each, Made):
                outcome, _ = run_case(each.case, target)
                if outcome.fault:
                    return Verdict(site, "caught", f"{outcome.status} {outcome.case}: {outcome.reason}"[:300])
        for since in taken_since(Generator(PLAIN(DEVICE), DEVICE), mutant, [op]):
            outcome, _ = run_case(since.case, target)
            if outcome.fault:
                text = f"{outcome.status} since-{since.case.name}: {outcome.reason}"
                return Verdict(site, "caught", text[:300])
        return _unseen(site, op, target, made)
    finally:
        tflite.declaration = PLAIN


def _unseen(site: Site, op: str, target: Target, made: Declaration) -> Verdict:
    """What a mutant of a row that the kit passes does to independent nodes."""
    plain, more = PLAIN(DEVICE), 0
    asked = 0
    for case in [*_probes([op], made), *_probes([op], plain), *_outside(op, plain)]:
        asked += 1
        before, after = (_taken(case, d) for d in (plain, made))
        if before is not None and before != after:
            return Verdict(site, "missed", f"{case.name} of the probes is refused now, or taken otherwise")
        if before is None and after is not None:
            more += 1
            outcome, _ = run_case(replace(case, expects="match"), target)
            if outcome.fault and case.outputs:
                return Verdict(
                    site, "missed", f"{case.name} of the probes: {outcome.status} {outcome.reason}"[:300]
                )
    if more:
        return Verdict(site, "right", f"the runtime computes all {more} nodes rightly that it takes more")
    return Verdict(site, "equal", f"none of {asked} independent nodes is taken or refused otherwise")


def _probes(ops: list[str], declaration: Declaration) -> list[Case]:
    generator = Generator(declaration, DEVICE, seed=1)
    count = PROBES * max(1, len(generator.rows(ops)))
    if "state" in ops:
        found = [graphs.graph(n, "float32", DEVICE, 1, state=True) for n in range(PROBES)]
        return [f[0] for f in found if f is not None]
    return [m.case for m in generated.inside(generator, count, ops) if isinstance(m, Made)]


def _outside(op: str, declaration: Declaration) -> list[Case]:
    generator = Generator(declaration, DEVICE, seed=1)
    return [m.case for m in generated.outside(generator, 4 * PROBES, [op])]


def _taken(case: Case, declaration: Declaration) -> list[str | None] | None:
    """What the nodes are lowered to; None where one is refused."""
    model = opened(case, tflite.TARGET, request_of(case, tflite.TARGET))
    rows_taken = [declaration.match(n, model.functions) for n in model.graph]
    if any(isinstance(r, Refusal) for r in rows_taken):
        return None
    return [f"{r.lower} {in_integers(r)}" for r in rows_taken if not isinstance(r, Refusal)]


def _results(case: Case, target: Target) -> list[dict[str, np.ndarray[Any, Any]]] | str:
    """The numbers on every runner; the error where there is one."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"probe{target.suffix}"
            request = request_of(case, target)
            write(target, opened(case, target, request), path, request)
            steps = range(case.steps) if case.steps else [None]
            return [
                runner.run(case.inputs if s is None else {k: v[s] for k, v in case.inputs.items()})
                for runner in target.runners(path, request)
                for s in steps
            ]
    except TapeoutError as error:
        return error.message


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    return len(a) == len(b) and all(
        set(x) == set(y) and all(x[k].tobytes() == y[k].tobytes() and x[k].dtype == y[k].dtype for k in x)
        for x, y in zip(a, b, strict=True)
    )


# --- many ------------------------------------------------------------------------------------------------------


def _work(path: str, pipe: Any) -> None:
    found: Corpus = pickle.loads(Path(path).read_bytes())
    harvest(tflite.TARGET, DEVICE, PLAIN(DEVICE))
    while True:
        try:
            site = pipe.recv()
        except EOFError:
            return
        pipe.send(judge(site, found))


class Judge:
    """A process that judges mutants: one that dies has been caught."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: Any = None
        self._pipe: Any = None

    def __call__(self, site: Site) -> Verdict:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, end = context.Pipe()
            self._process = context.Process(target=_work, args=(str(self._path), end), daemon=True)
            self._process.start()
            end.close()
        try:
            self._pipe.send(site)
            if self._pipe.poll(SECONDS):
                verdict: Verdict = self._pipe.recv()
                return verdict
            reason = f"no end within {SECONDS:g} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(10)
            reason = f"the runtime brings the process down ({self._process.exitcode})"
        self.close()
        return Verdict(site, "caught", reason)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def sampled(found: Corpus, seed: int) -> dict[str, list[Site]]:
    """The sites of each mutation operator in an order drawn by `seed`."""
    kinds: dict[str, list[Site]] = defaultdict(list)
    for site in sorted({*found.reach, *rows.sites(PLAIN(DEVICE))}):
        kinds[site.kind].append(site)
    rng = np.random.default_rng(seed)
    return {kind: [each[i] for i in rng.permutation(len(each))] for kind, each in sorted(kinds.items())}


def run(count: int, seed: int, path: Path, only: str | None = None, show: Any = print) -> list[Verdict]:
    """Judge mutants, of each operator in turn, until `count` are caught or missed."""
    found: Corpus = pickle.loads(path.read_bytes())
    order = {k: v for k, v in sampled(found, seed).items() if only is None or only in k}
    show(", ".join(f"{len(v)} sites: {k}" for k, v in order.items()))
    verdicts: list[Verdict] = []
    judge_one = Judge(path)
    try:
        for turn in range(max(map(len, order.values()))):
            for each in order.values():
                if turn < len(each) and sum(v.counted for v in verdicts) < count:
                    verdict = judge_one(each[turn])
                    verdicts.append(verdict)
                    show(f"{verdict.status:6} {verdict.site} <- {verdict.reason}")
            if sum(v.counted for v in verdicts) >= count:
                break
    finally:
        judge_one.close()
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="mutants that count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=CASES, help="generated cases of the kit")
    parser.add_argument("--kind", help="only mutation operators whose name holds this")
    parser.add_argument("--corpus", type=Path, help="keep the kit's cases in this file between runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = options.corpus or Path(folder) / "corpus"
        if not path.is_file():
            path.write_bytes(pickle.dumps(corpus(options.cases)))
        verdicts = run(options.count, options.seed, path, options.kind, lambda text: print(text, flush=True))
    tally = Counter(v.status for v in verdicts)
    print(f"{tally['caught']} of {tally['caught'] + tally['missed']} caught; not counted: {tally['equal']} that "
          f"change nothing, {tally['right']} that take what the runtime computes rightly")  # fmt: skip
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for v in verdicts:
        kinds[v.site.kind][v.status] += 1
    for kind, each in sorted(kinds.items()):
        print(f"  {kind:26} {', '.join(f'{n} {s}' for s, n in sorted(each.items()))}")
    print(f"{time.process_time() - start:.0f} s of processor time here, without the judges'")
    if options.json is not None:
        options.json.write_text(
            json.dumps(
                [{**asdict(v.site), "status": v.status, "reason": v.reason} for v in verdicts], indent=1
            )
        )
    return 0 if tally["caught"] >= 0.95 * (tally["caught"] + tally["missed"]) else 1


if __name__ == "__main__":
    sys.exit(main())
