"""The kit: its levels in order, each giving cases; failures are shrunk and kept as folders."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tapeout.compiler.conformance import damage, generated, graphs, kept, standard
from tapeout.compiler.conformance.case import FINISHED, SAME, Case, Outcome
from tapeout.compiler.conformance.draws import constraints
from tapeout.compiler.conformance.functions import harvest
from tapeout.compiler.conformance.generated import Generator, Made
from tapeout.compiler.conformance.models import models
from tapeout.compiler.conformance.report import Report
from tapeout.compiler.conformance.running import Progress, Source, Worker, load, opened, request_of, run_into
from tapeout.compiler.conformance.shrink import shrink
from tapeout.compiler.declaration import Declaration, Row
from tapeout.compiler.errors import MissingToolError, TapeoutError, UsageError
from tapeout.compiler.schemes import STATIC
from tapeout.compiler.target import write

if TYPE_CHECKING:
    from tapeout.compiler.target import Target

LEVELS = ("load", "nodes", "generated", "finished", "refused", "graphs", "models", "damaged")
SHRUNK = 12  # kinds of failures that are shrunk and kept
FINISHED_SHARE = 20  # one in so many cases goes through a vendor's compiler, which takes a second of each
SINCE = 40  # cases for each row of an operator whose rows have changed
TIMEOUT = 60.0
PREFIXES = ("since-", "finished-")  # of names of cases that are made as another is

Again = Callable[[Sequence[int]], "tuple[Case, tuple[int, ...]] | None"]


@dataclass(frozen=True)
class Choice:
    """What a run is to do: `count` generated cases (a third as many refused ones, a tenth as many graphs);
    `pattern` is searched in the names of the cases; `keep` is the folder for failures; `models` a folder of ONNX
    files; `since` an earlier declaration, all of which must still be taken."""

    levels: Sequence[str] = LEVELS
    count: int = 3000
    device: str | None = None
    seed: int = 0
    pattern: str | None = None
    every: int = 1
    keep: Path | None = None
    models: Path | None = None
    since: Declaration | None = None
    ops: Sequence[str] | None = None


@dataclass
class Kit:
    """One run of the kit on one target."""

    source: Source
    choice: Choice
    target: Target
    report: Report
    generator: Generator
    again: dict[str, tuple[Again, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return self.choice.device or self.target.devices[0]

    def cases(self, level: str) -> Iterator[Case]:
        """The cases of a level, made as they are asked for."""
        for case in getattr(self, f"_{level}")():
            if self.choice.pattern is None or re.search(self.choice.pattern, case.name):
                yield case

    def _load(self) -> Iterator[Case]:
        """The same bytes twice, for one case of each row."""
        seen: set[str] = set()
        for made in generated.inside(self.generator, len(self.generator.rows()), self.choice.ops):
            if isinstance(made, Made) and made.origin.row.where not in seen:
                seen.add(made.origin.row.where)
                name = f"twice-{made.case.name}"
                yield replace(made.case, name=name, level="load", expects=SAME)

    def _nodes(self) -> Iterator[Case]:
        for case in standard.cases(every=self.choice.every):
            yield replace(case, device=self.device)

    def _generated(self) -> Iterator[Case]:
        without: list[tuple[str, Row]] = []
        for made in generated.inside(self.generator, self.choice.count, self.choice.ops):
            if isinstance(made, Made):
                yield self._remembered(made, self.generator)
            else:
                without.append(made)
        if without:
            names = ", ".join(f"{op} ({row.where})" for op, row in without)
            self.report.notes.append(f"{len(without)} rows of which no case could be made: {names}")
        if self.choice.since is not None:
            earlier = Generator(self.choice.since, self.device, self.choice.seed)
            for made in taken_since(earlier, self.generator, self.choice.ops):
                case = self._remembered(made, earlier)
                yield replace(
                    case, name=f"since-{case.name}", origin=f"{case.origin} of the earlier declaration"
                )

    def _finished(self) -> Iterator[Case]:
        """Some generated cases and random graphs, through the vendor's compiler."""
        if self.target.finish is None:
            return
        count = -(-self.choice.count // FINISHED_SHARE)
        made = generated.inside(self.generator, count, self.choice.ops)
        single = [self._remembered(m, self.generator) for m in made if isinstance(m, Made)]
        missing = self._missing(single[0]) if single else None
        if missing is not None:
            self.report.notes.append(f"nothing was finished: {missing}")
            return
        for case in itertools.chain(single, self._drawn(-(-count // 2))):
            yield replace(case, name=f"finished-{case.name}", level="finished", expects=FINISHED)

    def _missing(self, case: Case) -> str | None:
        """What the target says where its compiler is not installed."""
        assert self.target.finish is not None
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(TapeoutError):
            path, request = Path(folder, f"artifact{self.target.suffix}"), request_of(case, self.target)
            model = opened(case, self.target, request)
            write(self.target, model, path, request)
            try:
                self.target.finish(path, model, request)
            except MissingToolError as error:
                return str(error)
        return None

    def _refused(self) -> Iterator[Case]:
        reached: Counter[str] = Counter()
        for made in generated.outside(self.generator, -(-self.choice.count // 3), self.choice.ops):
            reached[made.case.origin] += 1
            yield self._remembered(made, self.generator)
        keys = {
            f"{row.where}, {k}" for _, row in self.generator.rows(self.choice.ops) for k in constraints(row)
        }
        self.report.notes.append(
            f"{len(keys & set(reached))} of {len(keys)} constraints were broken alone; the others other rows take, or "
            "no valid node breaks them"
        )

    def _graphs(self) -> Iterator[Case]:
        yield from self._drawn(-(-self.choice.count // 10))

    def _drawn(self, count: int) -> Iterator[Case]:
        """Random graphs, by every scheme of the target in floats or static integers."""
        schemes = [s for s in self.target.schemes if s in graphs.RELATIVE or s in STATIC]
        if not schemes:
            self.report.notes.append(
                "no random graphs: the target has neither a float scheme nor a static one"
            )
            return
        singles = graphs.single_steps(self.device, self.choice.seed)
        known = graphs.vocabulary(singles, min(schemes, key=lambda s: s in STATIC), self._takes)
        for case, origin in graphs.graphs(count, schemes, self.device, self.choice.seed, known, self._takes):

            def again(
                choices: Sequence[int], o: graphs.GraphOrigin = origin
            ) -> tuple[Case, tuple[int, ...]] | None:
                found = graphs.graph(
                    o.number, o.scheme, self.device, self.choice.seed, choices, o.state, o.known
                )
                return None if found is None else (found[0], found[1].choices)

            self.again[case.name] = again, origin.choices
            yield case

    def _takes(self, case: Case) -> bool:
        """Whether the target takes the whole of a case."""
        try:
            model = opened(case, self.target, request_of(case, self.target))
            return not self.target.declaration(self.device).accept(model).refused
        except TapeoutError:
            return False

    def _models(self) -> Iterator[Case]:
        if self.choice.models is None:
            self.report.notes.append("no models were given (--models DIR)")
            return
        yield from models(self.choice.models, self.target, self.device, self.report.notes)

    def _damaged(self) -> Iterator[Case]:
        plain = [m.case for m in self._some(6)]
        yield from damage.damaged(plain, min(60, max(12, self.choice.count // 50)), self.choice.seed)

    def _some(self, count: int) -> list[Made]:
        """Some cases of rows far apart."""
        rows = self.generator.rows(self.choice.ops)
        found = []
        for op, row in rows[:: max(1, len(rows) // count)]:
            made = self.generator.inside(op, row, 0)
            if made is not None:
                found.append(made)
        return found[:count]

    def _remembered(self, made: Made, generator: Generator) -> Case:
        origin = made.origin

        def again(choices: Sequence[int]) -> tuple[Case, tuple[int, ...]] | None:
            found = generator.again(origin, choices)
            return None if found is None else (found.case, found.origin.choices)

        self.again[made.case.name] = again, origin.choices
        return made.case


def taken_since(earlier: Generator, now: Generator, ops: Sequence[str] | None = None) -> Iterator[Made]:
    """What an earlier declaration takes: many cases for each operator whose rows have changed, and none of others."""

    def rows(generator: Generator, op: str) -> list[tuple[Row, tuple[object, ...]]]:
        found = [row for _, row in generator.rows([op])]
        return [(replace(r, file="", limits=()), tuple((x.name, x.bound) for x in r.limits)) for r in found]

    changed = [op for op in earlier.declaration.rows if rows(earlier, op) != rows(now, op)]
    for op in changed if ops is None else [op for op in changed if op in ops]:
        for made in generated.inside(earlier, SINCE * len(rows(earlier, op)), [op]):
            if isinstance(made, Made):
                yield made


def run_kit(source: Source, choice: Choice = Choice(), progress: Progress | None = None) -> Report:
    """Run the levels of `choice` on a target, given by its name or by what makes it, and report.

    Raises what loading the target raises, UsageError for an unknown level or device.
    """
    wrong = [level for level in choice.levels if level not in LEVELS]
    if wrong:
        raise UsageError(f"no level '{wrong[0]}'", hint=f"levels: {', '.join(LEVELS)}")
    cpu = time.process_time()
    target = load(source)
    device = choice.device or target.devices[0]
    if device not in target.devices:
        raise UsageError(f"target '{target.name}' has no device '{device}'", hint=", ".join(target.devices))
    declaration = target.declaration(device)
    report = Report(target.name)
    kit = Kit(source, choice, target, report, Generator(declaration, device, choice.seed))
    failed: list[tuple[Case, Outcome]] = []
    with Worker(source) as worker:
        harvest(target, device, declaration)
        for level in choice.levels:
            failed += run_into(report, worker, kit.cases(level), 0, progress, timeout=TIMEOUT)
        report.cpu_seconds = time.process_time() - cpu + worker.cpu_seconds()
        if choice.keep is not None:
            _keep(kit, worker, failed, choice.keep)
    return report


def rerun(source: Source, folder: Path) -> Report:
    """The kept case in `folder` alone."""
    case = kept.read_case(folder)
    report = Report(load(source).name)
    with Worker(source) as worker:
        run_into(report, worker, [case], 1)
    return report


def _keep(kit: Kit, worker: Worker, failed: Sequence[tuple[Case, Outcome]], keep: Path) -> None:
    """Shrink one failure of each kind, and write it with the command that runs it again."""
    kinds: dict[tuple[str, str, str], tuple[Case, Outcome]] = {}
    for case, outcome in failed:
        kinds.setdefault((case.level, outcome.status, case.op), (case, outcome))
    if len(kinds) > SHRUNK:
        kit.report.notes.append(f"the first {SHRUNK} of {len(kinds)} kinds of failures were shrunk and kept")
    for case, outcome in list(kinds.values())[:SHRUNK]:
        plain = functools.reduce(str.removeprefix, PREFIXES, case.name)
        again, choices = kit.again.get(plain, (None, ()))
        wanted = case.expects

        def run(candidate: Case, wanted: str = wanted) -> Outcome:
            return worker.run(replace(candidate, expects=wanted), TIMEOUT)[0]

        smallest, found = shrink(case, outcome, run, again, choices)
        smallest = replace(smallest, expects=wanted, name=case.name)
        folder = keep / case.name
        named = kit.source if isinstance(kit.source, str) else kit.target.name
        kept.write_case(smallest, folder, named, found)
        kit.report.commands[case.name] = kept.command(folder, named)
