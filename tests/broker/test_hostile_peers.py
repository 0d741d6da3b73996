"""Messages between nodes that are not as they should be: dropped and counted, and nobody stops for them.

Real messages of a simulated cluster at work are changed in one place or two, and handed to the node that they were for.
What is decodable and plainly wrong (negative offsets, unknown nodes, absurd numbers) must reach no assertion. A node
that lies well is another matter: nothing helps against that.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, get_args

import msgspec
import pytest

from zbroker.protocol import peers
from zbroker.protocol.batch import Buffer
from zbroker.testing.clients import SimulatedAdmin, SimulatedProducer
from zbroker.testing.cluster import Process, SimulatedCluster, Watch
from zbroker.testing.history import History

NUMBERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 7, 2**30, 2**31, 2**62, 2**63 - 1, 2**64 - 1)
"""Beside the extremes, what is just within the range of its field."""
TEXTS = ("", "n1", "n9", "\x00", "../..", "ü" * 300, "0" * 32)


MESSAGES = 250


class Listener(Watch):
    """Keeps what nodes have lately said to one another: sender, receiver, lane, frames."""

    def __init__(self) -> None:
        self.heard: dict[str, deque[tuple[str, str, list[bytes]]]] = {}

    def sent(self, process: Process, node: str, lane: str, frames: Sequence[Buffer]) -> None:
        kind = type(peers.decode(bytes(frames[1]))).__name__
        self.heard.setdefault(kind, deque(maxlen=20)).append(
            (node, lane, [bytes(frame) for frame in frames])
        )


def wrong(rng: random.Random, value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return rng.choice((*NUMBERS, value - 1, value + 1))
        case str():
            return rng.choice(TEXTS)
        case {"host": _, **rest}:  # where a node says that it is reached is for it to say
            return {"host": value["host"], **wrong(rng, rest)}
        case dict() if value and rng.random() < 0.7:
            key = rng.choice(sorted(value))
            return {**value, key: wrong(rng, value[key])}
        case dict():
            return {**value, rng.choice(TEXTS): rng.choice(NUMBERS)}
        case list() if value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            return [*value[:at], wrong(rng, value[at]), *value[at + 1 :]]
        case list():
            return [*value, *value, rng.choice(NUMBERS)]
        case None:
            return rng.choice((*NUMBERS, *TEXTS))
    return value


def changed(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    """A message that is not as it should be; its envelope is."""
    fields = msgspec.msgpack.decode(frames[1])
    kinds = {kind.__struct_config__.tag: kind for kind in get_args(peers.Peer)}
    message = msgspec.convert(fields, kinds[fields["op"]])
    whole = {
        name: msgspec.to_builtins(value) for name, value in msgspec.structs.asdict(message).items()
    }
    names = kinds[fields["op"]].__struct_fields__
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2)))):
        fields[name] = wrong(rng, whole[name])
    bodies = frames[2:]
    if bodies and rng.random() < 0.3:
        bodies = rng.choice(([], [b""], bodies * 2, [bodies[0][:-1]], [bytes(200)]))
    return [frames[0], msgspec.msgpack.encode(fields), *bodies]


@pytest.mark.parametrize("seed", range(4))
def test_no_message_of_a_peer_reaches_an_assertion(seed: int) -> None:
    """Nor does a node stop for it."""
    rng = random.Random(seed)
    listener = Listener()
    cluster = SimulatedCluster(seed, watch=listener)
    cluster.form()
    SimulatedAdmin("admin", cluster).create_topic("t", partitions=2)
    SimulatedProducer("p", cluster, History(), {"t": 2})
    cluster.run(1)
    shown: object = None
    for _ in range(MESSAGES):
        kind = rng.choice(sorted(listener.heard))
        node, lane, frames = rng.choice(listener.heard[kind])
        hostile = changed(rng, frames)
        process = cluster.machines[node].process
        assert process is not None, (cluster.machines[node].error, shown)
        shown = (node, kind, msgspec.msgpack.decode(hostile[1]))
        cluster.trace.note(node, f"is told {shown}")
        process.call(lane, lambda: process.receive("?", lane, hostile))  # noqa: B023
        cluster.run(0.02)
    dropped = Counter[str]()
    for machine in cluster.machines.values():
        dropped += machine.broker.mesh.counters
    assert dropped["malformed"] > MESSAGES // 10


@pytest.mark.parametrize("field", ["incarnation", "disk_id"])
def test_a_start_that_is_not_the_one_linked_is_not_registered(field: str) -> None:
    """It would be for ever: no start after it could be registered."""
    cluster = SimulatedCluster(1)
    cluster.form()
    machine = next(each for each in cluster.machines.values() if each.broker.quorum.ready)
    other = next(each for each in cluster.machines.values() if each is not machine)
    before = machine.broker.metadata.nodes[other.name]
    said = {"disk_id": before.disk_id, "incarnation": before.incarnation}
    said[field] = "another" if field == "disk_id" else 2**40
    request = peers.Register(**said, host="h", port=1)  # type: ignore[arg-type]
    mesh = other.broker.mesh
    mesh.send(machine.name, peers.Forward(number=99, request=request))
    cluster.run(2)
    assert machine.broker.metadata.nodes[other.name] == before
    assert machine.broker.metadata.is_up(other.name)
