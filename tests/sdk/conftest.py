"""The command line in-process, as the tests of it have it."""

from tests.cli.conftest import cli as cli
