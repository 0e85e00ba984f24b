"""What plugins rely on is written down: a change of `tapeout.sdk` shows in signatures.txt."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

from tapeout import sdk

HERE = Path(__file__).parent


def described(name: str, thing: Any) -> list[str]:
    """One line for a function or a value; a class has one more for each field and public method."""
    if inspect.isclass(thing):
        bases = ", ".join(b.__name__ for b in thing.__bases__ if b is not object)
        lines = [f"class {name}({bases})"]
        fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
        for f in fields:
            optional = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
            lines.append(f"    {f.name}: {f.type}{' (optional)' if optional else ''}")
        known = {f.name for f in fields}
        for key, member in sorted(vars(thing).items()):
            if key.startswith("_") or key in known:
                continue
            if isinstance(member, property):
                lines.append(f"    {key} -> {inspect.signature(member.fget).return_annotation}")  # type: ignore[arg-type]
            elif callable(member) or isinstance(member, classmethod | staticmethod):
                function = getattr(member, "__func__", member)
                lines.append(f"    {key}{inspect.signature(function)}")
        return lines
    if isinstance(thing, types.ModuleType):
        own = [k for k, v in vars(thing).items() if inspect.isfunction(v) and v.__module__ == thing.__name__]
        return [
            f"module {name}",
            *(f"    {k}{inspect.signature(getattr(thing, k))}" for k in sorted(own) if k[0] != "_"),
        ]
    if callable(thing) and not isinstance(thing, tuple):
        return [f"{name}{inspect.signature(thing)}"]
    return [f"{name}: {type(thing).__name__}" + (f" = {thing}" if isinstance(thing, int | str) else "")]


def test_signatures(bless: bool) -> None:
    found = "\n".join(line for name in sdk.__all__ for line in described(name, getattr(sdk, name))) + "\n"
    place = HERE / "signatures.txt"
    if bless:
        place.write_text(found)
    assert found == place.read_text(), (
        "tapeout.sdk has changed: raise `api` where a plugin breaks, then --bless"
    )


def test_every_name_is_documented() -> None:
    text = (HERE.parents[1] / "docs" / "sdk.md").read_text()
    assert [n for n in sdk.__all__ if f"`{n}" not in text] == []


def test_importing_the_sdk_imports_no_pass() -> None:
    code = "import sys, tapeout.sdk; print(*(m for m in sys.modules if m.startswith('tapeout.passes.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
