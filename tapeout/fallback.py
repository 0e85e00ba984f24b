"""What a device leaves to the host beside it: whether the user allows it, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tapeout.compiler.errors import FallbackError, UnsupportedError, UsageError
from tapeout.compiler.partition import Limits

POLICIES = ("error", "host")
NAMED = 5


@dataclass(frozen=True)
class Fallback:
    """`policy` is "error" or "host", `most` the share of operators in percent that may be the host's, `limits` what
    is worth a part on the device. Raises UsageError for anything else."""

    policy: str = "error"
    most: float | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UsageError(f"--fallback '{self.policy}': expected {' or '.join(POLICIES)}")
        if self.most is not None and not 0 <= self.most <= 100:
            raise UsageError(f"--max-fallback {self.most:g}: expected a share from 0 to 100 percent")
        if self.limits != Limits() and not self.to_host:
            raise UsageError(
                "--smallest-island and --largest-transfer say what goes to the host",
                hint="add --fallback host",
            )

    @property
    def to_host(self) -> bool:
        return self.policy == "host"

    def hold(self, names: Sequence[str], total: int, device: str) -> dict[str, Any]:
        """What is the host's of `total` operators, for the report. Raises UnsupportedError where nothing may
        be, FallbackError where it is too much."""
        share = 100 * len(names) / max(total, 1)
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        if names and not self.to_host:
            raise UnsupportedError(
                f"{device} leaves to the CPU: {shown}",
                hint="--fallback host allows it, --max-fallback PCT bounds it",
                nodes=list(names)[:10],
            )
        if self.most is not None and share > self.most:
            raise FallbackError(
                f"{share:.1f}% of the operators are left to the CPU, at most {self.most:g}% are allowed: {shown}",
                nodes=list(names)[:10],
            )
        return {"operators": list(names), "percent": round(share, 2)}
