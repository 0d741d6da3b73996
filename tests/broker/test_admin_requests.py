"""What clients ask of a cluster, anything in any order: each is answered once, and no node stops for it."""

from __future__ import annotations

from typing import Any

import msgspec
from broker.world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from zbroker.protocol import messages

NAMES = st.sampled_from(["t", "u", "T", "new", "__groups", "../x", "", "ü", "a" * 250])
TEXTS = st.sampled_from(["", "1", "2", "x" * 300])
NODES = st.sampled_from(["node1", "node2", "", "x" * 300])
NUMBERS = st.sampled_from([-1, 0, 1, 7, 2**31 - 1])
SETTINGS = st.dictionaries(
    st.sampled_from(
        ["partitions", "replicas", "min_insync", "fsync", "retention", "segment_size", "max_batch", "cleanup", "x"]
    ),
    st.sampled_from([0, 1, 2, 3, -1, 2**40, "1", "always", "never", "", "1KiB", "8MiB", "forever", "1h", "x"]),
    max_size=3,
)  # fmt: skip
IDS = st.sampled_from(["t", "u", "none", "0" * 32, None])
"""A topic's id, by its name; or another, or none."""


def any_of(kind: type[messages.Message]) -> st.SearchStrategy[dict[str, Any]]:
    """Fields of a request; each may be left out."""
    fields = {
        "name": NAMES, "topic": st.none() | NAMES, "topic_id": IDS, "settings": SETTINGS, "request_id": TEXTS,
        "partition": NUMBERS, "epoch": NUMBERS, "node": NODES, "to": st.lists(NODES, max_size=3),
        "undo": st.booleans(), "action": st.sampled_from(["add", "remove", "replace"]),
        "topics": st.none() | st.lists(NAMES, max_size=3), "before": NUMBERS,
    }  # fmt: skip
    known = {name: fields[name] for name in kind.__struct_fields__ if name in fields}
    return st.fixed_dictionaries({}, optional=known).map(lambda found: {"kind": kind, **found})


KINDS = [
    messages.CreateTopic, messages.AlterTopic, messages.DeleteTopic, messages.MovePartitions, messages.DrainNode,
    messages.ChangeVoters, messages.AcceptLoss, messages.DeleteRecords, messages.InitProducer, messages.Metadata,
    messages.Stats,
]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(asked=st.lists(st.one_of(*map(any_of, KINDS)), max_size=8))
def test_every_request_is_answered_once_and_nobody_stops(asked: list[dict[str, Any]]) -> None:
    world = World()
    world.start()
    ids = {name: world.create(name) for name in ("t", "u")}
    for fields in asked:
        kind = fields.pop("kind")
        if fields.get("topic_id") in ids:
            fields["topic_id"] = ids[fields["topic_id"]]
        tag = kind.__struct_config__.tag
        number = next(world.ids)
        world.asked.add((b"c", number))
        world.raw(msgspec.msgpack.encode({"op": tag, "id": number, **fields}))
        world.run()
    for _ in range(200):
        world.tick()
        world.run()
    assert world.broker.state == "serving"
    world.check_rest()
