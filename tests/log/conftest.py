"""Every behaviour is tested over the simulated disk and over real files."""

from __future__ import annotations

from pathlib import Path

import pytest
from log.world import World


@pytest.fixture(params=["simulated", "real"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """A log, open and empty, over either kind of files."""
    fresh = World(None if request.param == "simulated" else tmp_path)
    fresh.open()
    return fresh


@pytest.fixture
def simulated() -> World:
    """A log, open and empty, on a disk that takes orders."""
    fresh = World(None)
    fresh.open()
    return fresh
