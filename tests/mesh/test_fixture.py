"""The fixture for users, as docs/testing.md shows it."""

from __future__ import annotations

from zbroker.testing.clients import SimulatedAdmin, SimulatedConsumer, SimulatedProducer
from zbroker.testing.cluster import SimulatedCluster
from zbroker.testing.history import History, check

pytest_plugins = ["zbroker.testing.pytest_plugin"]


def test_a_kill_loses_nothing(zbroker_simulation: SimulatedCluster) -> None:
    cluster, history = zbroker_simulation, History()
    SimulatedAdmin("admin", cluster).create_topic("sales", partitions=2)
    producer = SimulatedProducer("till", cluster, history, {"sales": 2})
    SimulatedConsumer("books", cluster, history, ("sales",))
    cluster.run(2)
    cluster.machines["n1"].kill()
    cluster.run(2)
    cluster.start("n1")
    producer.sending = False
    cluster.run(15)
    assert history.sends
    assert check(history, drained=True) == []
