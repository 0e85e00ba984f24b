"""Options of the whole suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bless", action="store_true", help="rewrite the expected part of text tests with what came out"
    )


@pytest.fixture
def bless(request: pytest.FixtureRequest) -> bool:
    """True where the expected part of text tests is to be rewritten."""
    return bool(request.config.getoption("--bless"))
