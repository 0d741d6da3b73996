"""The metadata as bytes and back."""

from __future__ import annotations

import msgspec
import pytest

from zbroker.cluster import snapshot
from zbroker.cluster.metadata import Metadata
from zbroker.cluster.records import (
    ClusterFormed,
    IsrChanged,
    LeaderAppointed,
    MetadataRecord,
    NodeDrained,
    NodeFenced,
    NodeRegistered,
    ProducerIdsGranted,
    ReplicasChanged,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
    VoterReplacing,
    VotersChanged,
)
from zbroker.errors import DataDamaged, UnsupportedVersion
from zbroker.log import envelope
from zbroker.topics import TopicSettings

RECORDS: list[MetadataRecord] = [
    ClusterFormed("c1", "lab", 1, {"a": "d1", "b": "d2"}),
    NodeRegistered("a", "d1", 3, "10.0.0.1", 5550, "shelf"),
    NodeRegistered("b", "d2", 1, "10.0.0.2", 5550),
    TopicCreated("t1", "Sales", TopicSettings(partitions=2), [["a", "b"], ["b", "a"]], "r1"),
    LeaderAppointed("t1", 0, "a", 4, ["a", "b"], True),
    IsrChanged("t1", 0, ["a"]),
    TopicAltered("t1", TopicSettings(partitions=3, retention=None), [["a"]]),
    TopicCreated("t2", "gone", TopicSettings(), [["a"]], "r2"),
    TopicDeleted("t2", "r3"),
    NodeFenced("b", 1, "silent"),
    ReplicasChanged("t1", 0, ["a", "b"], ["b"]),
    LeaderAppointed("t1", 1, None, 2, ["b"], disk="d7"),
    NodeDrained("b", True),
    VotersChanged({"a": "d1"}),
    VoterReplacing("b"),
    ProducerIdsGranted("a", 1000, 1000),
]


def state() -> Metadata:
    metadata = Metadata()
    for record in RECORDS:
        metadata.apply(record)
    return metadata


def content(metadata: Metadata) -> dict[str, object]:
    notes = ("touched", "deleted", "nodes_touched")
    return {name: value for name, value in vars(metadata).items() if name not in notes}


def test_everything_survives() -> None:
    metadata = state()
    data = snapshot.seal(metadata, 11, 7)
    found, again = snapshot.unseal(data, "metadata/snapshot")
    assert (found.offset, found.epoch) == (11, 7)
    assert content(again) == content(metadata)
    assert list(again.topics) == list(metadata.topics), "in their order"


def test_a_copy_shares_nothing_that_changes() -> None:
    metadata = state()
    before = snapshot.seal(metadata, 0, 0)
    copy = metadata.copy()
    assert not copy.touched
    assert content(copy) == content(metadata)
    copy.apply(NodeRegistered("c", "d3", 1, "10.0.0.3", 5550))
    copy.apply(LeaderAppointed("t1", 0, "b", 9, ["b"]))
    copy.apply(LeaderAppointed("t1", 1, "b", 9, ["a", "b"]))
    copy.apply(IsrChanged("t1", 1, ["b"]))
    copy.apply(ReplicasChanged("t1", 0, ["a", "b", "c"], ["c"]))
    copy.apply(TopicAltered("t1", TopicSettings(partitions=4), [["a"]]))
    copy.apply(NodeDrained("c", True))
    copy.apply(VotersChanged({"a": "d1"}))
    copy.apply(VoterReplacing("b"))
    copy.apply(NodeFenced("c", 1, "gone"))
    copy.apply(ProducerIdsGranted("a", 2000, 1000))
    copy.apply(TopicDeleted("t1", "r9"))
    assert snapshot.seal(metadata, 0, 0) == before


@pytest.mark.parametrize("at", [0, 5, 20, -1])
def test_a_flipped_bit_is_found(at: int) -> None:
    data = bytearray(snapshot.seal(state(), 11, 7))
    data[at] ^= 4
    with pytest.raises(DataDamaged):
        snapshot.unseal(bytes(data), "metadata/snapshot")


def test_a_part_is_no_snapshot() -> None:
    data = snapshot.seal(state(), 11, 7)
    for size in (0, 3, len(data) - 1):
        with pytest.raises(DataDamaged):
            snapshot.unseal(data[:size], "metadata/snapshot")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"feature_level": 99}, "feature level 99"), ({"unheard_of": 1}, "does not understand")],
)
def test_what_a_newer_version_wrote_is_refused(change: dict[str, object], said: str) -> None:
    whole, _ = snapshot.unseal(snapshot.seal(state(), 11, 7), "x")
    fields = msgspec.msgpack.decode(whole.state) | change
    newer = snapshot.Snapshot(11, 7, msgspec.Raw(msgspec.msgpack.encode(fields)))
    data = envelope.seal(snapshot.MAGIC, msgspec.msgpack.encode(newer))
    with pytest.raises(UnsupportedVersion, match=said):
        snapshot.unseal(data, "metadata/snapshot")


def test_what_has_changed_is_noted() -> None:
    metadata = state()
    assert list(metadata.touched) == ["t1", "t2"]
    assert list(metadata.deleted) == ["t2"]
    assert metadata.nodes_touched
    for record in RECORDS[4:7]:
        if isinstance(record, LeaderAppointed):
            record = LeaderAppointed("t1", 0, "a", 5, ["a"])
        metadata.touched.clear()
        metadata.apply(record)
        assert list(metadata.touched) == ["t1"], record
    metadata.nodes_touched = False
    metadata.apply(NodeFenced("a", 3, "gone"))
    assert metadata.nodes_touched
