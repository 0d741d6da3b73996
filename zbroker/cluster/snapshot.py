"""The metadata as bytes, and the files that keep them: everything that must survive when the log before it goes.

Owns the form of a snapshot and what is refused when one is read: a damaged one, and one that a newer version wrote.
Never decides when one is made, and never applies a record.

========= ==========================================================================================================
file      what it is
========= ==========================================================================================================
snapshot  the state below the offset at which the log may begin
incoming  a leader's snapshot that takes the place of the log here: while it is there, the log is being discarded
========= ==========================================================================================================
"""

from __future__ import annotations

import msgspec

from zbroker.cluster.metadata import Metadata, TopicState
from zbroker.cluster.records import FEATURE_LEVEL, NodeRegistered
from zbroker.errors import DataDamaged, DataFolderError, DiskFull, UnsupportedVersion
from zbroker.log import envelope
from zbroker.log.storage import Files, Request
from zbroker.protocol.batch import Buffer

MAGIC = b"ZBMS"
NAME = "snapshot"
INCOMING = "incoming"


class State(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of `Metadata` that records make; the others follow from them."""

    cluster_id: str | None
    cluster_name: str
    feature_level: int
    voters: dict[str, str]
    replacing: str | None
    nodes: list[NodeRegistered]
    fenced: dict[str, str]
    drained: list[str]
    topics: list[TopicState]
    next_producer_id: int
    deletions: dict[str, str]


class Snapshot(msgspec.Struct, frozen=True):
    """The state that the records below an offset make, and the epoch of the last of them."""

    offset: int
    epoch: int
    state: msgspec.Raw


class _Level(msgspec.Struct):
    """What is looked at before the rest is."""

    feature_level: int


_decode = msgspec.msgpack.Decoder(Snapshot).decode
_decode_level = msgspec.msgpack.Decoder(_Level).decode
_decode_state = msgspec.msgpack.Decoder(State).decode


def seal(metadata: Metadata, offset: int, epoch: int) -> bytes:
    """A snapshot as a file has it, with length and CRC around it.

    Args:
        offset: all below it is in the state.
        epoch: of the record before it, -1 where there is none.
    """
    state = msgspec.Raw(msgspec.msgpack.encode(_state(metadata)))
    return envelope.seal(MAGIC, msgspec.msgpack.encode(Snapshot(offset, epoch, state)))


def unseal(data: bytes, path: str) -> tuple[Snapshot, Metadata]:
    """What `seal` made.

    Args:
        path: where it comes from, for errors.

    Raises:
        DataDamaged: it is not whole.
        UnsupportedVersion: a newer version wrote it.
    """
    body = envelope.unseal(MAGIC, data, path)
    if body is None:
        raise DataDamaged(f"{path} is damaged")
    try:
        snapshot = _decode(body)
    except msgspec.MsgspecError:
        raise DataDamaged(f"{path} is damaged") from None
    return snapshot, _restore(snapshot.state, path)


def _state(metadata: Metadata) -> State:
    return State(
        cluster_id=metadata.cluster_id,
        cluster_name=metadata.cluster_name,
        feature_level=metadata.feature_level,
        voters=metadata.voters,
        replacing=metadata.replacing,
        nodes=list(metadata.nodes.values()),
        fenced=metadata.fenced,
        drained=list(metadata.drained),
        topics=list(metadata.topics.values()),
        next_producer_id=metadata.next_producer_id,
        deletions=metadata.deletions,
    )


def _restore(data: Buffer, path: str) -> Metadata:
    try:
        level = _decode_level(data).feature_level
        if level > FEATURE_LEVEL:
            raise UnsupportedVersion(
                f"{path} is of feature level {level}, and this version knows {FEATURE_LEVEL}; start the version "
                "that wrote it, or a newer one"
            )
        state = _decode_state(data)
    except msgspec.MsgspecError as error:
        raise UnsupportedVersion(
            f"{path} has something that this version does not understand ({error}); start the version that wrote it, "
            "or a newer one"
        ) from None
    metadata = Metadata()
    metadata.cluster_id = state.cluster_id
    metadata.cluster_name = state.cluster_name
    metadata.feature_level = state.feature_level
    metadata.voters = state.voters
    metadata.replacing = state.replacing
    metadata.nodes = {node.node: node for node in state.nodes}
    metadata.fenced = state.fenced
    metadata.drained = dict.fromkeys(state.drained)
    metadata.topics = {topic.topic_id: topic for topic in state.topics}
    metadata.ids = {topic.name: topic.topic_id for topic in state.topics}
    metadata.folded = {topic.name.lower(): topic.name for topic in state.topics}
    metadata.next_producer_id = state.next_producer_id
    metadata.deletions = state.deletions
    return metadata


# Files ---


class Kept(msgspec.Struct, frozen=True):
    """A snapshot that was read."""

    offset: int
    epoch: int
    metadata: Metadata


class Found(msgspec.Struct, frozen=True):
    """What a disk keeps; `damaged`: there is a snapshot, and it cannot be read."""

    kept: Kept | None
    incoming: Kept | None
    damaged: bool


class LoadSnapshot(Request):
    """Reads what there is."""

    def run(self, files: Files) -> Found:
        """Both files.

        Raises:
            DataFolderError: the log may have been discarded for a snapshot that is damaged.
        """
        incoming, damaged = self._load(files, INCOMING)
        if damaged:
            raise DataFolderError(
                f"{self.owner}/{INCOMING} is damaged, and the log that it was to replace may be gone; start this "
                "node on an empty folder, and replace the voter if it was one"
            )
        kept, damaged = self._load(files, NAME)
        return Found(kept, incoming, damaged)

    def _load(self, files: Files, name: str) -> tuple[Kept | None, bool]:
        path = f"{self.owner}/{name}"
        size = files.size(path)
        if size < 0:
            return None, False
        try:
            snapshot, metadata = unseal(files.read(path, 0, size), path)
        except (OSError, DataDamaged):
            return None, True
        return Kept(snapshot.offset, snapshot.epoch, metadata), False


class SaveSnapshot(Request):
    """Replaces one of the files, on disk once this is done."""

    name: str
    data: bytes
    offset: int
    epoch: int

    def run(self, files: Files) -> None:
        """Nothing is replaced where this fails.

        Raises:
            DiskFull: the old one is still there.
        """
        try:
            envelope.save(files, self.owner, self.name, self.data)
        except OSError as error:
            if error.errno in envelope.FULL:
                raise DiskFull("the disk is full, and a snapshot could not be kept") from error
            raise envelope.failed(
                files, self.owner, f"saving {self.owner}/{self.name}", error
            ) from error


class AdoptSnapshot(Request):
    """The leader's snapshot becomes this node's own; the log begins where it ends by now."""

    def run(self, files: Files) -> None:
        """Once this is done, the log is not discarded again."""
        try:
            files.rename(f"{self.owner}/{INCOMING}", f"{self.owner}/{NAME}")
        except OSError as error:
            raise envelope.failed(
                files, self.owner, f"renaming {self.owner}/{INCOMING}", error
            ) from error
        envelope.flush_folder(files, self.owner)
