"""Whatever escapes from a public function is a TapeoutError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tapeout.compiler.errors import InternalError, OutputError, ResourceError, TapeoutError


@contextmanager
def failures() -> Iterator[None]:
    """Full disks and exhausted memory by their kind, whatever else is not foreseen as internal."""
    try:
        yield
    except TapeoutError:
        raise
    except OSError as error:
        raise OutputError(f"{error.strerror or error}: '{error.filename or 'a file'}'") from error
    except MemoryError as error:
        raise ResourceError("not enough memory", hint="a smaller batch or fewer --jobs need less") from error
    except RecursionError as error:
        raise InternalError(
            "the model is nested too deeply", hint="please report it with the model"
        ) from error
    except Exception as error:
        raise InternalError(
            f"{type(error).__name__}: {error}",
            hint="a fault of tapeout: please report it with the model (TAPEOUT_TRACEBACK=1 shows where)",
        ) from error
