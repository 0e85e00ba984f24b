"""Options of the whole suite."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bless", action="store_true", help="rewrite the expected part of text tests with what came out"
    )


@pytest.fixture
def bless(request: pytest.FixtureRequest) -> bool:
    """True where the expected part of text tests is to be rewritten."""
    return bool(request.config.getoption("--bless"))


@pytest.fixture(autouse=True)
def no_folder_targets() -> Iterator[None]:
    """A target that a test names by its folder is found by that test only."""
    from tapeout.compiler import target

    path, folders = list(sys.path), dict(target._folders)
    yield
    sys.path[:] = path
    target._folders.clear()
    target._folders.update(folders)
