"""Fixtures for pytest: a real node, a cluster of three, or a simulated one, for the tests of programs that use zbroker.

Name it in the `conftest.py` beside your tests:

    pytest_plugins = ["zbroker.testing.pytest_plugin"]

It is no entry point: pytest would import it in every run on a machine that has zbroker, and rewrite the assertions of
the whole package, for the sake of those who ask for it in one line anyway.

Settings of a test's own come by indirect parameters, and are those of `NodeProcess`, `ClusterProcesses` and
`SimulatedCluster`:

    @pytest.mark.parametrize("zbroker_cluster", [{"nodes": 5}], indirect=True)
    def test_five(zbroker_cluster): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from zbroker.testing.cluster import SimulatedCluster
    from zbroker.testing.nodes import ClusterProcesses, NodeProcess


@pytest.fixture
def zbroker_node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NodeProcess]:
    """A node that serves, in a process of its own; clients connect to its `.servers`."""
    from zbroker.testing.nodes import running_node

    with running_node(tmp_path / "zbroker", **_settings(request)) as node:
        yield node


@pytest.fixture
def zbroker_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClusterProcesses]:
    """A cluster of three nodes that serve, each in a process of its own; clients connect to its `.servers`."""
    from zbroker.testing.nodes import ClusterProcesses

    with ClusterProcesses(tmp_path / "zbroker", **_settings(request)) as cluster:
        yield cluster


@pytest.fixture
def zbroker_simulation(request: pytest.FixtureRequest) -> SimulatedCluster:
    """A cluster of three nodes in this thread and in simulated time, formed, with every invariant looked at."""
    from zbroker.testing.cluster import SimulatedCluster
    from zbroker.testing.invariants import Invariants

    cluster = SimulatedCluster(**{"watch": Invariants(), **_settings(request)})
    cluster.form()
    return cluster


def _settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(getattr(request, "param", {}))
