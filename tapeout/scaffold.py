"""A new target's package, written from the files in `templates/`."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import re
import shutil
import tempfile
from pathlib import Path

from tapeout.compiler.artifact import file_errors
from tapeout.compiler.errors import UsageError
from tapeout.compiler.target import targets

# Where each template goes; @WORDS@ are replaced in both.
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "workflow.yml": ".github/workflows/test.yml",
    "target.toml": "src/@PACKAGE@/target.toml",
    "__init__.py": "src/@PACKAGE@/__init__.py",
    "run.py": "src/@PACKAGE@/run.py",
    "test_conformance.py": "tests/test_conformance.py",
}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 40


def words(name: str) -> dict[str, str]:
    """What the templates' words stand for. Raises UsageError where `name` is no name for a new target."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise UsageError(
            f"'{name}' is no name for a target: small letters, digits and single hyphens, a letter first, "
            f"at most {LONGEST}",
            hint="such as acme or acme-npu2",
        )
    if name in targets():
        raise UsageError(f"a target '{name}' is installed already", hint="see 'tapeout targets'")
    package = f"tapeout_{name.replace('-', '_')}"
    version = ".".join(importlib.metadata.version("tapeout").split(".")[:2])
    return {"NAME": name, "PACKAGE": package, "SUFFIX": name.replace("-", ""), "VERSION": version}


def new_target(name: str, folder: Path) -> list[Path]:
    """Write the package of a new target `name` to `folder`, whole or not at all; returns its files.

    Raises UsageError where the name cannot be taken or `folder` exists, OutputError where it cannot be written.
    """
    given = words(name)
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"'{folder}' exists already", hint="choose another place with -o")
    source = importlib.resources.files("tapeout") / "templates"
    with file_errors("write", folder):
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.absolute().parent))
        try:
            for template, place in FILES.items():
                path = staged / _filled(place, given)
                path.parent.mkdir(parents=True, exist_ok=True)
                text = (source / f"{template}.tmpl").read_text(encoding="utf-8")
                path.write_text(_filled(text, given), encoding="utf-8", newline="\n")
            staged.chmod(0o755)
            os.rename(staged, folder)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    return [folder / _filled(place, given) for place in FILES.values()]


def _filled(text: str, given: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda match: given[match[1]], text)
