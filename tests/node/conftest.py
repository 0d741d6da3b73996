"""One node for the tests of a module that leave no trace in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from zbroker.testing.nodes import NodeProcess, running_node


@pytest.fixture(scope="module")
def node_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(tmp_path_factory.mktemp("node")) as running:
        yield running
