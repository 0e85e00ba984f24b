"""The rules of the house: floors, siblings, the wheel, and words that have no place in the repository."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("compiler", "passes", "targets", "tapeout")  # from the ground up
SDK = "tapeout.sdk"  # lies in the face's folder and stands below the targets


def modules() -> Iterator[tuple[int, Path]]:
    for level, floor in enumerate(FLOORS):
        for path in sorted((ROOT / floor).rglob("*.py")):
            if floor != "tapeout" or path.relative_to(ROOT / floor).parts[0] not in FLOORS:
                yield level, path


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the floor"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def floor_of(name: str) -> int | None:
    parts = name.split(".")
    if parts[0] != "tapeout":
        return None
    if name == SDK or name.startswith(f"{SDK}."):
        return FLOORS.index("targets")
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else 3


def own_floor(level: int, path: Path) -> int:
    """The SDK's own imports are those of something just above the passes."""
    return FLOORS.index("passes") if path == ROOT / "tapeout" / "sdk.py" else level


def test_imports_go_down_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for level, path in modules()
        for name, line in imports(path)
        if (floor := floor_of(name)) is not None and floor > own_floor(level, path)
    ]
    assert wrong == []


def test_targets_do_not_import_each_other() -> None:
    wrong = []
    for _, path in modules():
        parts = path.relative_to(ROOT).parts
        if parts[0] != "targets" or len(parts) < 3:
            continue
        for name, line in imports(path):
            other = name.split(".")
            if other[:2] == ["tapeout", "targets"] and len(other) > 2 and other[2] != parts[1]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def test_targets_take_from_the_sdk_what_it_offers() -> None:
    """Built-in targets live on what plugins get; what they take from the floors below is what it lacks."""
    import importlib

    from tapeout import sdk

    wrong = []
    for path in sorted((ROOT / "targets").rglob("*.py")):
        for name, line in imports(path):
            module, _, what = name.rpartition(".")
            if not module.startswith(("tapeout.compiler", "tapeout.passes")) or what not in sdk.__all__:
                continue
            if getattr(importlib.import_module(module), what, None) is getattr(sdk, what):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {what} is offered by {SDK}")
    assert wrong == []


def test_targets_take_nothing_from_the_compiler() -> None:
    """What they need of it the SDK offers, to plugins too; single rules of the passes are theirs to choose."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for folder in ("ethos_u", "openvino", "tflite")
        for path in sorted((ROOT / "targets" / folder).rglob("*.py"))
        for name, line in imports(path)
        if name.startswith("tapeout.") and not name.startswith((SDK, "tapeout.targets", "tapeout.passes"))
    ]
    assert wrong == []


def test_a_target_that_extends_another_needs_the_sdk_alone() -> None:
    below = {
        name.rpartition(".")[0]
        for path in (ROOT / "targets" / "ethos_u").rglob("*.py")
        for name, _ in imports(path)
        if name.startswith("tapeout.") and not name.startswith((SDK, "tapeout.targets.ethos_u"))
    }
    assert below == set()


def test_the_core_knows_no_target() -> None:
    """What a target takes is decided by its rows: below the targets nothing asks which one it is."""
    names = {p.name.replace("_", "-") for p in (ROOT / "targets").iterdir() if (p / "target.toml").exists()}
    wrong = []
    for level, path in modules():
        if level >= FLOORS.index("targets"):
            continue
        for node in ast.walk(tree(path)):
            compared = [*node.comparators, node.left] if isinstance(node, ast.Compare) else []
            if isinstance(node, ast.Call):
                compared = [*node.args, *(k.value for k in node.keywords)]
            for inner in (i for c in compared for i in ast.walk(c)):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value in names:
                    wrong.append(f"{path.relative_to(ROOT)}:{inner.lineno}: {inner.value}")
    assert wrong == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(p.relative_to(ROOT)) for _, p in modules() if not ast.get_docstring(tree(p))]
    assert silent == []


@pytest.mark.slow
def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    """An unlisted folder is silently missing from a wheel: build one and compare."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*"):
            inner = path.relative_to(ROOT / floor)
            if path.suffix in (".py", ".toml") and not (floor == "tapeout" and inner.parts[0] in FLOORS):
                expected.add(f"tapeout/{inner}" if floor == "tapeout" else f"tapeout/{floor}/{inner}")
    assert expected - packed == set()
    assert "tapeout/py.typed" in packed
