"""Code of a plugin, held: what it raises, where it writes and how long it takes become one error that names it.

It is a net for faults, not a sandbox: a plugin's threads, its processes and its native code are its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from tapeout.compiler import last_resort
from tapeout.compiler.errors import TapeoutError, VendorToolError
from tapeout.compiler.rewriting import Changes

if TYPE_CHECKING:
    import numpy as np

    from tapeout.compiler.pipeline import Pass
    from tapeout.compiler.target import Request, Runner, Target

SECONDS = 1800.0  # for one call of a plugin; importing one and asking it what it takes has SHORT
SHORT = 60.0
GRACE = 10.0  # after which the last resort is called: native code answers to no exception
LIMIT = "TAPEOUT_PLUGIN_SECONDS"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
HINT = "a fault of the plugin: please report it to its maker (TAPEOUT_TRACEBACK=1 shows where)"


class _Late(BaseException):
    """Raised inside a call that takes too long; no Exception, which plugins catch."""


@dataclass
class _Call:
    """A call in progress on a thread: who is called for what, and what it wrote where it may not."""

    who: str
    what: str
    place: str | None = None  # where it may write besides the temporary folder
    outside: str | None = None


_calls: dict[int, _Call] = {}  # by thread
_watching = False


@contextlib.contextmanager
def contained(
    who: str, what: str, seconds: float = SECONDS, place: str | os.PathLike[str] | None = None
) -> Iterator[None]:
    """Run the block as `what` of `who`. Raises VendorToolError where it fails, exits, hangs or writes outside the
    temporary folder and the folder `place`; a TapeoutError goes through, and so do a full disk and an interrupt."""
    thread = threading.get_ident()
    if thread in _calls:  # a call within a call is the outer one's
        yield
        return
    _watch()
    seconds = float(os.environ.get(LIMIT) or seconds)
    call = _calls[thread] = _Call(who, what, None if place is None else os.path.realpath(place))
    try:
        with _deadline(seconds, call):
            yield
    except _Late:
        raise _late(call, seconds) from None
    except VendorToolError as error:  # what its declaration is refused for does not name it
        if call.outside is None:
            raise VendorToolError(f"{who}: {error.message}", hint=error.hint, nodes=error.nodes) from error
    except (TapeoutError, KeyboardInterrupt, MemoryError):
        if call.outside is None:
            raise
    except OSError as error:
        if call.outside is None and error.errno in FULL:
            raise
        if call.outside is None:
            raise _failed(call, error) from error
    except BaseException as error:
        if call.outside is None:
            raise _failed(call, error) from error
    finally:
        del _calls[thread]
    if call.outside is not None:
        raise VendorToolError(
            f"{who}: {what} writes '{call.outside}', outside its output and the temporary folder", hint=HINT
        )


def _failed(call: _Call, error: BaseException) -> VendorToolError:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    return VendorToolError(f"{call.who}: {call.what} failed: {said}{at}", hint=HINT)


def _late(call: _Call, seconds: float) -> VendorToolError:
    return VendorToolError(
        f"{call.who}: {call.what} did not finish within {seconds:g} s",
        hint=f"{LIMIT} allows more; else a fault of the plugin",
    )


# --- time -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _deadline(seconds: float, call: _Call) -> Iterator[None]:
    """Raise _Late in this thread after `seconds`, and again every second after that."""
    thread, done = threading.get_ident(), threading.Event()
    by_signal = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")

    def watch() -> None:
        if done.wait(seconds):
            return
        waited = 0.0
        while not done.is_set() and waited < GRACE:
            if not by_signal:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Late))
            done.wait(1.0)
            waited += 1.0
        if not done.is_set() and last_resort.end is not None:
            last_resort.end(_late(call, seconds))

    def alarm(*_: object) -> None:
        raise _Late

    watcher = threading.Thread(target=watch, daemon=True, name="tapeout-watch")
    watcher.start()
    if not by_signal:
        try:
            yield
        finally:
            done.set()
        return
    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        done.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- places ---------------------------------------------------------------------------------------------------

_CHANGES = {
    "os.mkdir": 0, "os.rmdir": 0, "os.remove": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0,
    "os.chmod": 0, "os.chown": 0, "shutil.rmtree": 0,
}  # fmt: skip


_BY_FOLDER = _CHANGES.keys() - {
    "os.truncate",
    "shutil.rmtree",
}  # their last argument is a folder's descriptor


def _watch() -> None:
    """Look at every file that is opened or changed; the hook stays until the process ends."""
    global _watching
    tempfile.gettempdir()  # found by writing files under a lock that the hook would wait for
    if _watching:
        return
    _watching = True
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _calls or (event != "open" and event not in _CHANGES):
        return
    call = _calls.get(threading.get_ident())
    if call is None or call.outside is not None:
        return
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return
    else:
        path = arguments[_CHANGES[event]]
        if event in _BY_FOLDER and arguments[-1] not in (None, -1):
            return  # a name within a folder that is open
    if isinstance(path, int) or path is None:
        return  # a descriptor, which someone has opened
    place = os.path.realpath(os.fsdecode(path))
    if _allowed(place, call.place):
        return
    call.outside = place
    raise PermissionError(errno.EACCES, "a target writes to its output and the temporary folder only", place)


def _allowed(place: str, own: str | None) -> bool:
    if "__pycache__" in place or ".pyc" in place or place.startswith("/dev/"):
        return True
    if own is not None and Path(place).is_relative_to(own):
        return True
    return Path(place).is_relative_to(os.path.realpath(tempfile.gettempdir()))


# --- a target -------------------------------------------------------------------------------------------------


def guarded(target: Target, who: str) -> Target:
    """`target` with every call of it contained."""

    def wrap(what: str, function: Callable[..., Any], seconds: float = SECONDS) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with contained(who, what, seconds):
                return function(*arguments, **named)

        return call

    def passes(request: Request) -> tuple[Pass, ...]:
        with contained(who, "its tuple of passes"):
            found = tuple(target.passes(request))
        return tuple(Contained(step, who) if _own(step) else step for step in found)

    def runners(artifact: Path, request: Request) -> Sequence[Runner]:
        with contained(who, "its runner"):
            return [_runner(r, who) for r in target.runners(artifact, request)]

    def emit(model: ir.Model, sink: Any, *rest: Any) -> None:
        with contained(who, "its emitter", SECONDS, sink if target.folder is not None else None):
            target.emit(model, sink, *rest)

    words = {"inspect": "its inspection", "finish": "its compiler"}
    found: dict[str, Any] = {
        f.name: wrap(words.get(f.name, f"its '{f.name}'"), value)
        for f in fields(target)
        if callable(value := getattr(target, f.name))
    }
    found |= {"declaration": wrap("its declaration", target.declaration, SHORT)}
    return replace(target, **found | {"passes": passes, "emit": emit, "runners": runners})


def _own(step: Any) -> bool:
    """Whether the code of a pass, or of one of its rules, is the plugin's."""
    parts = [step, *getattr(step, "rules", ())]
    modules = [getattr(p, "__module__", None) or type(p).__module__ for p in parts]
    return any(m.partition(".")[0] != "tapeout" for m in modules)


class Contained:
    """A pass of a plugin."""

    def __init__(self, step: Pass, owner: str) -> None:
        self._step = step
        self.owner = owner

    @property
    def name(self) -> str:
        from tapeout.compiler.pipeline import name_of

        return name_of(self._step)

    def __call__(self, model: ir.Model, /) -> Changes:
        with contained(self.owner, f"its pass '{self.name}'"):
            return self._step(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)


class _Runner:
    """A runner of a plugin, with what it can do besides."""

    def __init__(self, runner: Any, who: str) -> None:
        self._runner, self._who = runner, who
        self.runtime: str = runner.runtime
        self.device: str = runner.device
        for name in ("ports", "names", "reset"):
            if hasattr(runner, name):
                setattr(self, name, self._held(getattr(runner, name)))
        if hasattr(runner, "quantized"):
            self.quantized: bool = runner.quantized

    def _held(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with contained(self._who, "its runner"):
                return function(*arguments)

        return call

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]], /) -> dict[str, np.ndarray[Any, Any]]:
        with contained(self._who, "its runner"):
            return dict(self._runner.run(inputs))

    def tensors(
        self, inputs: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str], /
    ) -> dict[str, np.ndarray[Any, Any]]:
        with contained(self._who, "its runner"):
            return dict(self._runner.tensors(inputs, names))


def _runner(runner: Any, who: str) -> Runner:
    lacks = [n for n in ("runtime", "device", "run", "tensors") if not hasattr(runner, n)]
    if lacks:
        raise VendorToolError(f"{who}: its runner has no {', '.join(lacks)}", hint=HINT)
    return _Runner(runner, who)
