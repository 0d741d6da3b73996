"""A replica's roles, by script: what an appointment makes of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from zbroker.log.log import Log
from zbroker.log.settings import LogSettings
from zbroker.protocol.batch import encode_batch, stamp
from zbroker.protocol.peers import Append, Appended
from zbroker.replication.leader import LeaderSettings
from zbroker.replication.ports import LinkBudget
from zbroker.replication.replica import Appointment, Replica
from zbroker.testing.disk import SimulatedDisk, SimulatedStorage


class Bench:
    """Node `a`'s replica of a partition that `a` and `b` keep."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Appended]] = []
        self.storage = SimulatedStorage(
            SimulatedDisk(random.Random(0)), None, lambda done: self.replica.on_event(done, 0)
        )
        self.replica = Replica(
            Log("p", LogSettings(retention=None), self.storage),
            LeaderSettings(node="a", topic_id="t"),
            send=lambda *_: None,
            answer=lambda node, message: self.said.append((node, message)),
            budgets=lambda _: LinkBudget(1),
        )
        self.replica.open(0)
        self.storage.run_all()

    def appoint(self, leader: str | None, epoch: int, replicas: Mapping[str, int]) -> None:
        self.replica.appoint(
            Appointment(epoch=epoch, leader=leader, isr=["b"], replicas=replicas), now=0
        )
        self.storage.run_all()


def batch(base: int, epoch: int = 3) -> bytes:
    made = encode_batch([(0, None, b"x", ())], base_timestamp=1, max_timestamp=1)
    stamp(made, base_offset=base, append_time=1, leader_epoch=epoch)
    return bytes(made)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_node_that_is_up_again_follows_the_leader_that_there_was(bench: Bench) -> None:
    bench.appoint("b", 3, {"b": 1})
    assert bench.replica.state == "idle", "it is fenced: nobody sends to it"
    bench.appoint("b", 3, {"a": 1, "b": 1})
    assert bench.replica.state == "following"
    assert [(node, message.status) for node, message in bench.said] == [("b", "ready")]


def test_the_same_appointment_again_changes_nothing(bench: Bench) -> None:
    bench.appoint("b", 3, {"a": 1, "b": 1})
    follower = bench.replica.follower
    bench.appoint("b", 3, {"a": 1, "b": 1})
    assert bench.replica.follower is follower


def test_an_older_appointment_is_not_taken_up(bench: Bench) -> None:
    bench.appoint("b", 3, {"a": 1, "b": 1})
    bench.appoint("a", 2, {"a": 1, "b": 1})
    assert bench.replica.state == "following"
    assert bench.replica.epoch == 3


def test_what_a_leader_asked_while_the_log_is_cut_counts_no_more_once_another_leads(
    bench: Bench,
) -> None:
    def hear(epoch: int, session: int, base: int, *data: bytes, **fields: Any) -> None:
        message = Append(topic_id="t", epoch=epoch, session=session, base=base, **fields)
        bench.replica.on_append("b", message, list(data), 0)

    replicas = {"a": 1, "b": 1}
    bench.appoint("b", 3, replicas)
    hear(3, 1, 0, probe=True, epochs=[(3, 0)])
    hear(3, 1, 0, *(batch(at) for at in range(4)))
    bench.storage.run_all()
    bench.appoint("b", 4, replicas)
    hear(4, 1, 2, probe=True, prev_epoch=3)
    hear(4, 2, 1, probe=True, prev_epoch=3)
    bench.said.clear()
    bench.appoint("b", 5, replicas)
    assert bench.replica.log.end_offset == 2
    assert [(message.epoch, message.status) for _, message in bench.said] == [(5, "ready")]


def test_a_damaged_leader_lets_another_lead_but_not_for_ever(bench: Bench) -> None:
    bench.replica.log.damaged = [(0, 5)]
    replicas = {"a": 1, "b": 1}
    bench.appoint("a", 3, replicas)
    assert bench.replica.resigned, "b is in sync, and may have what is damaged here"
    bench.appoint("b", 4, replicas)
    assert not bench.replica.resigned
    bench.appoint("a", 5, replicas)
    assert bench.replica.state == "leading", "b could not lead either"
    assert not bench.replica.resigned
