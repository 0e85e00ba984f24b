"""What a run of the kit found: as text, JSON, the documentation's table, JUnit's XML and a page of HTML."""

from __future__ import annotations

import html
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tapeout.compiler.conformance.case import FAULTS, SEPARATOR, STATUSES, Outcome

SHOWN = 40  # kinds of faults, and reasons of refusal, that a text lists


@dataclass
class Report:
    """The outcomes of a run in the order of the cases, and the runtimes that ran them.

    `commands` has for a failed case the one command that runs its shrunk form again; `notes` says what a level
    did not do and why (nothing is left out in silence).
    """

    target: str
    outcomes: list[Outcome] = field(default_factory=list)
    runtimes: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    commands: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Number of cases by status."""
        found = Counter(o.status for o in self.outcomes)
        return {s: found[s] for s in STATUSES} | {s: n for s, n in found.items() if s not in STATUSES}

    def levels(self) -> dict[str, Counter[str]]:
        """Number of cases by level and status, in the order of the run."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for o in self.outcomes:
            found[o.level][o.status] += 1
        return dict(found)

    @property
    def faults(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.status in FAULTS]

    @property
    def ok(self) -> bool:
        """True where nothing is wrong, crashes, does not run, or is refused against a promise."""
        return not self.faults

    def reasons(self) -> list[tuple[str, int]]:
        """Reasons of refusal with the number of cases that have them, most frequent first."""
        found = Counter(r for o in self.outcomes if o.status == "refused" for r in _general(o.reason))
        return sorted(found.items(), key=lambda item: (-item[1], item[0]))

    def by_op(self) -> dict[str, Counter[str]]:
        """Number of cases by operator and status, operators sorted."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for o in self.outcomes:
            found[o.op][o.status] += 1
        return dict(sorted(found.items()))

    def text(self) -> str:
        """For people: the tally by level, every fault with its command, and the reasons of refusal by
        frequency."""
        levels = self.levels()
        what = "node cases" if set(levels) <= {"nodes"} else "cases"
        lines = [f"{self.target}: {len(self.outcomes)} {what} on {', '.join(self.runtimes) or 'no runtime'}"]
        if len(levels) > 1:
            for level, found in levels.items():
                tally = ", ".join(f"{n} {s}" for s, n in sorted(found.items(), key=_by_status))
                lines.append(f"  {level:10} {found.total():5}: {tally}")
        lines.append(", ".join(f"{n} {status}" for status, n in self.counts().items()))
        lines += [f"note: {n}" for n in self.notes]
        faults: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
        for o in self.faults:
            faults[o.status, o.op if o.level == "generated" else o.reason].append(o)
        if faults:
            lines += ["", "faults:"]
        for (status, _), same in list(faults.items())[:SHOWN]:
            more = f" and {len(same) - 1} more" if len(same) > 1 else ""
            lines.append(f"  {status:12} {same[0].case}{more} ({same[0].op}): {same[0].reason}")
            command = next((self.commands[o.case] for o in same if o.case in self.commands), None)
            lines += [f"               again: {command}"] if command else []
        if len(faults) > SHOWN:
            lines.append(f"  and {len(faults) - SHOWN} more kinds")
        reasons = self.reasons()
        if reasons:
            lines += ["", "refused:"] + [f"  {n:4} {reason}" for reason, n in reasons[:SHOWN]]
        if len(reasons) > SHOWN:
            lines.append(f"  and {len(reasons) - SHOWN} more reasons")
        return "\n".join(lines)

    def json(self) -> str:
        """For programs: one object with the tally and every outcome; the same run gives the same text."""
        levels = set(self.levels())
        made: dict[str, Any] = {
            "schema": 1,
            "target": self.target,
            "runtimes": list(self.runtimes),
            "counts": self.counts(),
            "cases": [
                {"case": o.case, "op": o.op, "status": o.status, "reason": o.reason}
                | ({"level": o.level, "origin": o.origin} if levels > {"nodes"} else {})
                for o in self.outcomes
            ],
        }
        if self.notes:
            made["notes"] = self.notes
        if self.commands:
            made["commands"] = self.commands
        return json.dumps(made, indent=1)

    def markdown(self) -> str:
        """The table that stands in the documentation; the same run gives the same text."""
        import onnx

        counts = self.counts()
        lines = [
            f"# Conformance of `{self.target}`",
            "",
            f"Generated by `python -m tapeout.compiler.conformance {self.target}`: the {len(self.outcomes)} "
            f"numeric node cases of `onnx.backend.test` (onnx {onnx.__version__}), each compiled and run on "
            f"{' and '.join(self.runtimes) or 'no runtime'}, held to the case's own tolerances; "
            "an expected number below the rounding of its own tensor counts as zero. "
            "What models have as a constant (a shape, an axis) is a computed input in these cases.",
            "",
            "| " + " | ".join(counts) + " |",
            "|" + "---:|" * len(counts),
            "| " + " | ".join(str(n) for n in counts.values()) + " |",
            "",
            "| operator | cases | pass | refused | most frequent reason of refusal |",
            "|---|---:|---:|---:|---|",
        ]
        for op, found in self.by_op().items():
            refused = [o for o in self.outcomes if o.op == op and o.status == "refused"]
            reasons = Counter(r for o in refused for r in _general(o.reason))
            reason = min(reasons.items(), key=lambda item: (-item[1], item[0]))[0] if reasons else ""
            cell = reason.replace("|", "\\|")
            lines.append(f"| {op} | {found.total()} | {found['pass']} | {found['refused']} | {cell} |")
        return "\n".join(lines) + "\n"

    def junit(self) -> str:
        """JUnit's XML: a suite for each level, a failure for each fault; the same run gives the same text."""
        import xml.etree.ElementTree as xml

        counts = self.counts()
        top = xml.Element("testsuites", name=f"tapeout conformance {self.target}")
        top.set("tests", str(len(self.outcomes)))
        top.set("failures", str(sum(n for s, n in counts.items() if s in FAULTS)))
        for level, found in self.levels().items():
            suite = xml.SubElement(top, "testsuite", name=level, tests=str(found.total()))
            suite.set("failures", str(sum(n for s, n in found.items() if s in FAULTS)))
            for o in self.outcomes:
                if o.level != level:
                    continue
                case = xml.SubElement(
                    suite, "testcase", name=_plain(o.case), classname=f"{self.target}.{o.op}"
                )
                if o.fault:
                    failure = xml.SubElement(case, "failure", type=o.status, message=_plain(o.reason))
                    failure.text = self.commands.get(o.case, o.origin)
                elif o.reason:
                    xml.SubElement(case, "system-out").text = _plain(o.reason)
        xml.indent(top)
        return '<?xml version="1.0" encoding="utf-8"?>\n' + xml.tostring(top, encoding="unicode") + "\n"

    def html(self) -> str:
        """One page without scripts: the tally by level, every fault, and each operator."""
        e = html.escape
        statuses = list(self.counts())

        def table(head: list[str], rows: list[list[Any]]) -> str:
            cells = "".join(f"<tr>{''.join(f'<td>{e(str(c))}</td>' for c in row)}</tr>\n" for row in rows)
            return f"<table><tr>{''.join(f'<th>{e(h)}</th>' for h in head)}</tr>\n{cells}</table>\n"

        style = (
            "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
            "td,th{border:1px solid #ccc;padding:2px 8px;text-align:left;vertical-align:top}"
        )
        title = f"Conformance of {self.target}"
        parts = [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{e(title)}</title><style>{style}</style>",
            f"<h1>{e(title)}</h1><p>{len(self.outcomes)} cases on {e(', '.join(self.runtimes) or 'no runtime')}: "
            f"<b>{'conforms' if self.ok else f'{len(self.faults)} faults'}</b></p>",
            table(
                ["level", "cases", *statuses],
                [[lv, n.total(), *(n[s] for s in statuses)] for lv, n in self.levels().items()],
            ),
            "".join(f"<p>{e(n)}</p>" for n in self.notes),
        ]
        if self.faults:
            parts.append("<h2>Faults</h2>")
            rows = [[o.status, o.case, o.op, o.reason, self.commands.get(o.case, "")] for o in self.faults]
            parts.append(table(["status", "case", "operator", "reason", "again"], rows))
        parts.append("<h2>Operators</h2>")
        found = [[op, n.total(), *(n[s] for s in statuses)] for op, n in self.by_op().items()]
        parts.append(table(["operator", "cases", *statuses], found))
        reasons = self.reasons()
        if reasons:
            parts.append("<h2>Refused</h2>" + table(["cases", "reason"], [[n, r] for r, n in reasons]))
        return "\n".join(parts) + "</html>\n"


def _by_status(item: tuple[str, int]) -> int:
    return STATUSES.index(item[0]) if item[0] in STATUSES else len(STATUSES)


def _general(reason: str) -> tuple[str, ...]:
    """The reasons of a case, each once and without the name of its node, so that equal ones count as one."""
    return tuple(dict.fromkeys(re.sub(r" '[^']*'", "", one, count=1) for one in reason.split(SEPARATOR)))


def _plain(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(c if c >= " " else " " for c in text)
