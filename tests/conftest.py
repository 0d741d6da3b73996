"""What all tests share: how hypothesis searches, and a node to test on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from zbroker.testing.nodes import NodeProcess, running_node

# Tests run side by side on small machines: how long one example takes says nothing there.
settings.register_profile(
    "zbroker", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("zbroker")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    """A real node with default settings, as a process of its own."""
    with running_node(tmp_path / "node") as running:
        yield running
