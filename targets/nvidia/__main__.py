"""python -m tapeout.targets.nvidia inspect|diff|strip|refit PLAN ..."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tapeout.compiler.artifact import Stage, check_output
from tapeout.sdk import TapeoutError
from tapeout.targets.nvidia.plan.edit import describe, diff, refit, strip, weights_of
from tapeout.targets.nvidia.plan.read import PlanFile


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 where `diff` finds a difference, else that of the error."""
    parser = argparse.ArgumentParser(prog="python -m tapeout.targets.nvidia", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("inspect", help="what is in a plan, as JSON").add_argument("plan", type=Path)
    comparing = commands.add_parser("diff", help="what differs between two plans")
    comparing.add_argument("plan", type=Path)
    comparing.add_argument("other", type=Path)
    stripping = commands.add_parser("strip", help="a plan without its weights")
    stripping.add_argument("plan", type=Path)
    refitting = commands.add_parser(
        "refit", help="a plan with weights: from another plan or an .npz, by name"
    )
    refitting.add_argument("plan", type=Path)
    refitting.add_argument("weights", type=Path)
    refitting.add_argument("--changed", action="store_true", help="take other weights of the same sizes")
    for one in (stripping, refitting):
        one.add_argument("-o", dest="output", type=Path, required=True)
    asked = parser.parse_args(arguments)
    try:
        return run(asked)
    except TapeoutError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)


def run(asked: argparse.Namespace) -> int:
    """Carry out a parsed command. Raises TapeoutError."""
    file = PlanFile(asked.plan)
    if asked.command == "inspect":
        print(json.dumps(describe(file), indent=2))
        return 0
    if asked.command == "diff":
        lines = diff(file.plan, PlanFile(asked.other).plan)
        print("\n".join(lines) or "the same plan")
        return int(bool(lines))
    place = check_output(asked.output)
    with Stage() as stage:
        with stage.open(place) as sink:
            if asked.command == "strip":
                strip(file, sink)  # type: ignore[arg-type]
            else:
                changed = refit(file, weights_of(asked.weights), sink, exact=not asked.changed)  # type: ignore[arg-type]
                print(f"{len(changed)} of {len(file.plan.weights)} weights are other ones than before")
        stage.publish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
