"""The command line: one command per file of `commands/`; exit codes, JSON and messages are made here."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from tapeout.commands import (
    bench,
    calibrate,
    compare,
    conformance,
    explain,
    export,
    inspect,
    new_target,
    sensitivity,
    targets,
    verify,
)

SCHEMA = "tapeout/1"
USAGE, INTERNAL, INTERRUPTED, TERMINATED = 2, 70, 130, 143

app = typer.Typer(
    name="tapeout",
    help="Compile trained models into verified artifacts for the hardware that runs them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for command in (
    export,
    explain,
    verify,
    compare,
    inspect,
    bench,
    calibrate,
    sensitivity,
    targets,
    conformance,
    new_target,
):
    command.register(app)


def _version(value: bool) -> None:
    if value:
        from tapeout import __version__

        typer.echo(f"tapeout {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Say the version."
    ),
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code and never raises for bad input."""
    arguments = list(arguments)
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _terminated)
    try:
        with _quiet_libraries():
            result = app(args=arguments, prog_name="tapeout", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except BaseException as error:
        if os.environ.get("TAPEOUT_TRACEBACK") == "1" and not isinstance(error, SystemExit):
            raise
        return _failed(error, "--json" in arguments)


def _failed(error: BaseException, as_json: bool) -> int:
    """Say what went wrong, as text and where asked as JSON; the exit code."""
    from tapeout.compiler.errors import TapeoutError
    from tapeout.failures import failures

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else INTERNAL
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return say_error(INTERRUPTED, "interrupted", "interrupted; nothing was written", None, as_json)
    if hasattr(error, "format_message"):  # what the command line parser raises
        text = str(error.format_message())
        context: Any = getattr(error, "ctx", None)
        hint = f"see {context.command_path} --help" if context is not None else None
        return say_error(USAGE, "usage", text, hint, as_json)
    if not isinstance(error, TapeoutError):
        try:
            with failures():
                raise error
        except TapeoutError as known:
            error = known
    assert isinstance(error, TapeoutError)
    return say_error(error.exit_code, error.kind, error.message, error.hint, as_json, error)


def say_error(code: int, kind: str, message: str, hint: str | None, as_json: bool, error: Any = None) -> int:
    """As text, and as JSON where asked; the exit code."""
    from tapeout.compiler.errors import TapeoutError

    print(f"error: {message}" + (f"\n  hint: {hint}" if hint else ""), file=sys.stderr)
    if as_json:
        from tapeout.compiler.artifact import json_bytes

        body = error.as_json() if isinstance(error, TapeoutError) else {
            "code": code, "kind": kind, "transient": False, "message": message, "hint": hint, "nodes": [],
        }  # fmt: skip
        sys.stdout.write(json_bytes({"schema": SCHEMA, "error": body}).decode())
        sys.stdout.flush()
    return code


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Native libraries write notes to descriptor 2 that nobody asked for: while a command runs it leads
    nowhere, and `sys.stderr` is a copy of what it was. A crash of a library still shows, by faulthandler."""
    try:
        ours = sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours or os.environ.get("TAPEOUT_TRACEBACK") == "1":
        yield
        return
    import faulthandler

    known, was_enabled = sys.stderr, faulthandler.is_enabled()
    known.flush()
    copy, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = os.fdopen(
        copy, "w", buffering=1, encoding=known.encoding, errors="backslashreplace", closefd=False
    )
    faulthandler.enable(sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        if was_enabled:
            faulthandler.enable(known)
        else:
            faulthandler.disable()
        sys.stderr = known
        os.dup2(copy, 2)
        os.close(copy)


def _terminated(*_: object) -> None:
    raise SystemExit(TERMINATED)
