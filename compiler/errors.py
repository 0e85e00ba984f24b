"""Every failure that a user can meet: what, where, expected, found, what to do, and the exit code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class TapeoutError(Exception):
    """Base of all failures.

    `message` says what, where, what was expected and what was found; `hint` says what to do;
    `nodes` are source node names. `kind` is the stable machine-readable name of the class,
    `code` its exit code; `transient` is true where the same call may succeed later.
    """

    kind = "internal"
    exit_code = 70
    transient = False

    def __init__(self, message: str, *, hint: str | None = None, nodes: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.nodes = tuple(nodes)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"

    def as_json(self) -> dict[str, object]:
        """The `error` object of `--json`."""
        return {
            "code": self.exit_code,
            "kind": self.kind,
            "transient": self.transient,
            "message": self.message,
            "hint": self.hint,
            "nodes": list(self.nodes),
        }


class UsageError(TapeoutError):
    """An option, a name or a piece of data given by the user does not fit."""

    kind, exit_code = "usage", 2


class InvalidModelError(TapeoutError):
    """The model file is damaged, unsafe or not valid ONNX."""

    kind, exit_code = "invalid_model", 3


class UnsupportedError(TapeoutError):
    """The target does not take the model; the message carries every reason.

    `violations` are the constraints, each as `explain --json` says it: `what` is bounded, what is `expected` and
    `found`, and the `fix`.
    """

    kind, exit_code = "unsupported", 4

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        nodes: Iterable[str] = (),
        violations: Iterable[Mapping[str, str | None]] = (),
    ) -> None:
        super().__init__(message, hint=hint, nodes=nodes)
        self.violations = tuple(violations)

    def as_json(self) -> dict[str, object]:
        return super().as_json() | {"violations": [dict(v) for v in self.violations]}


class AccuracyError(TapeoutError):
    """The artifact does not compute what the source computes, or no proof could be had."""

    kind, exit_code = "accuracy", 5


class BudgetError(TapeoutError):
    """The artifact is larger or slower than the user allows."""

    kind, exit_code = "budget", 6


class FallbackError(TapeoutError):
    """More is left to the host than the user allows."""

    kind, exit_code = "fallback", 7


class VendorToolError(TapeoutError):
    """A vendor's tool failed or is missing."""

    kind, exit_code = "vendor_tool", 8


class MissingToolError(VendorToolError):
    """A vendor's tool is not installed here."""


class ResourceError(TapeoutError):
    """A budget on bytes, elements, nodes or depth would be exceeded."""

    kind, exit_code = "resource", 9


class OutputError(TapeoutError):
    """Reading or writing a file failed: permissions, a full disk, a missing folder."""

    kind, exit_code, transient = "io", 10, True


class InternalError(TapeoutError):
    """A fault of tapeout's own: a pass broke the graph, a lowering wrote what does not load."""

    kind, exit_code = "internal", 70
