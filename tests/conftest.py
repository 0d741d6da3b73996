"""What all tests share: how hypothesis searches, and a node to test on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from zbroker.testing.nodes import NodeProcess, running_node

# Tests run side by side on small machines: how long one example takes says nothing there.
settings.register_profile(
    "zbroker", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("brief", settings.get_profile("zbroker"), max_examples=20)
settings.load_profile("zbroker")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has its background jobs ignore Ctrl-C, and so would every process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


SUMMARY_WIDTH = 400
"""Characters of a line of pytest's summary where no terminal sets a width: a failure's reason is not cut off."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Has the lines that name failures say why also where they go to a file; they come after this."""
    if not terminalreporter.isatty():
        terminalreporter.config.get_terminal_writer().fullwidth = SUMMARY_WIDTH


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    """A real node with default settings, as a process of its own."""
    with running_node(tmp_path / "node") as running:
        yield running
