"""Damaged artifacts: cut short, or with a bit turned. One clear error or numbers, never a crash."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tapeout.compiler.conformance.case import ERROR, Case, line
from tapeout.compiler.errors import TapeoutError

if TYPE_CHECKING:
    from tapeout.compiler.target import Target

KEY = "damage"  # the option of a case that says how: "cut:PLACE" or "flip:BIT", as shares of the file
SHARES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def damaged(cases: Sequence[Case], count: int, seed: int = 0) -> Iterator[Case]:
    """`count` damaged forms of the artifacts of `cases`: half of them cut, half with a turned bit."""
    for number in range(count if cases else 0):
        case = cases[number % len(cases)]
        turn = number // len(cases)
        if number % 2:
            rng = np.random.default_rng([seed, number, zlib.crc32(case.name.encode())])
            how = f"flip:{rng.random():.6f}"
        else:
            how = f"cut:{SHARES[(turn // 2 + number) % len(SHARES)]}"
        yield replace(
            case,
            name=f"{case.name}-{how.replace(':', '-')}",
            level="damaged",
            expects=ERROR,
            options={**case.options, KEY: how},
            origin=f"{how} of {case.name}",
        )


def run_damaged(case: Case, target: Target, path: Path) -> tuple[str, str, tuple[str, ...]]:
    """Write the artifact, damage it, open and run it: a TapeoutError, or a result of any numbers where a bit was
    turned in what holds numbers."""
    from dataclasses import replace as changed

    from tapeout.compiler.conformance.running import opened, parts_of, request_of
    from tapeout.compiler.target import write

    plain = changed(case, options={k: v for k, v in case.options.items() if k != KEY})
    request = request_of(plain, target)
    try:
        write(target, opened(plain, target, request), path, request)
    except TapeoutError as error:
        return "refused", line(error.message), ()
    kind, _, share = str(case.options[KEY]).partition(":")
    file = path if target.folder is None else max(parts_of(target, path), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    if kind == "cut":
        content = content[: int(len(content) * float(share))]
    else:
        place = int(len(content) * 8 * float(share))
        content[place // 8] ^= 1 << place % 8
    file.write_bytes(bytes(content))
    names: list[str] = []
    try:
        for runner in target.runners(path, request):
            names.append(runner.runtime)
            runner.run(case.inputs)
    except TapeoutError as error:
        return ("pass" if error.message else "unexplained"), "", tuple(names)
    except Exception as error:
        return "crash", f"no clear error: {type(error).__name__}: {line(str(error))}", tuple(names)
    if kind == "cut" and names:
        return "accepted", "a file that is cut short runs", tuple(names)
    return "pass", "", tuple(names)
