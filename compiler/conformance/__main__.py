"""`python -m tapeout.compiler.conformance TARGET`: the standard's node cases, and the documentation's table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from tapeout.compiler.conformance.case import Outcome
from tapeout.compiler.conformance.running import run_conformance
from tapeout.compiler.errors import TapeoutError


def main(arguments: Iterable[str] | None = None) -> int:
    """0 where no case is at fault, else 5."""
    parser = argparse.ArgumentParser(prog="python -m tapeout.compiler.conformance", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--case", metavar="REGEX", help="only cases whose name matches")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th of them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave model, data and artifact of each faulty case there"
    )
    parser.add_argument("-o", type=Path, metavar="FILE", help="write the Markdown table to this file")
    options = parser.parse_args(None if arguments is None else list(arguments))

    def show(done: int, total: int, outcome: Outcome) -> None:
        if sys.stderr.isatty():
            print(
                f"\r\x1b[K{done}/{total} {outcome.case}",
                end="" if done < total else "\n",
                file=sys.stderr,
                flush=True,
            )

    try:
        report = run_conformance(
            options.target, pattern=options.case, every=options.every, progress=show, keep=options.keep
        )
    except TapeoutError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(report.json() if options.json else report.text())
    if options.o is not None:
        options.o.write_text(report.markdown())
    print(f"{report.seconds:.0f} s", file=sys.stderr)
    return 0 if report.ok else 5


if __name__ == "__main__":
    sys.exit(main())
