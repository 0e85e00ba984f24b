"""What ends a process whose plugin does not come back; apart, since the command line names it before it needs more."""

from __future__ import annotations

from collections.abc import Callable

from tapeout.compiler.errors import VendorToolError

# Called from another thread while native code runs on; None: it is waited for.
end: Callable[[VendorToolError], None] | None = None
