"""The records of `__groups`: one a group, one a member, one a committed offset, each under a key of its own.

The topic is compacted, so each value is the whole of what is known under its key, and none means that it is gone. Key
and value are MessagePack: the key an array that begins with the record's kind, the value a map. A partition of the
topic has the records of every group whose name hashes to it (`partition_of`).

Owns the layout. Never decides and never applies.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from zbroker import topics
from zbroker.errors import UnsupportedVersion
from zbroker.protocol.batch import MALFORMED, EncodedRecord, crc32c

TOPIC = topics.GROUPS

Given = dict[str, dict[int, int]]
"""Partitions by topic id and number, each with the member epoch at which it was given."""
Revoked = dict[str, dict[int, tuple[int, int]]]
"""Partitions on their way back, each with the epoch at which it was given and the one at which it was revoked."""


class GroupKey(NamedTuple):
    """The group itself."""

    group: str


class MemberKey(NamedTuple):
    """One member of it."""

    group: str
    member: str


class OffsetKey(NamedTuple):
    """One position of it."""

    group: str
    topic_id: str
    partition: int


class GroupValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """A group.

    Attributes:
        epoch: grows with each new target.
        assignor: how the last target was made.
        empty_since: ms since the epoch when the last member went; None while it has members.
    """

    epoch: int
    assignor: str = "sticky"
    empty_since: int | None = None


class MemberValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """A member.

    Attributes:
        epoch: the group's epoch at which its partitions last changed.
        topics: names and patterns that it subscribed to.
        assigned: what it may read.
        releasing: what it has to give back, and has not said to have released.
        session_timeout, release_timeout: ms.
    """

    epoch: int
    topics: list[str]
    assigned: Given = {}
    releasing: Revoked = {}
    instance: str | None = None
    client: str = ""
    assignor: str = "sticky"
    rack: str | None = None
    session_timeout: int = 10_000
    release_timeout: int = 300_000


class OffsetValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """A committed position.

    Attributes:
        offset: the first offset that is not done yet.
        epoch: leader epoch of the record before it, -1 where it is not known.
        note: the application's own words.
        time: ms since the epoch when it was committed.
        member: who committed it, with `number`; empty where that does not matter.
        number: which of the member's commits it was, -1 where it did not say.
    """

    offset: int
    epoch: int = -1
    note: str = ""
    time: int = -1
    member: str = ""
    number: int = -1


class GroupRecord(msgspec.Struct, frozen=True):
    """What is known of a group; no value: it is gone."""

    key: GroupKey
    value: GroupValue | None


class MemberRecord(msgspec.Struct, frozen=True):
    """What is known of a member; no value: it is out."""

    key: MemberKey
    value: MemberValue | None


class OffsetRecord(msgspec.Struct, frozen=True):
    """A position; no value: none is committed."""

    key: OffsetKey
    value: OffsetValue | None


Record = GroupRecord | MemberRecord | OffsetRecord

GROUP, MEMBER, OFFSET = "group", "member", "offset"

_encode = msgspec.msgpack.Encoder().encode
_decode_key = msgspec.msgpack.Decoder(list[str | int]).decode
_decode_group = msgspec.msgpack.Decoder(GroupValue).decode
_decode_member = msgspec.msgpack.Decoder(MemberValue).decode
_decode_offset = msgspec.msgpack.Decoder(OffsetValue).decode

_KINDS: dict[type[Record], str] = {
    GroupRecord: GROUP,
    MemberRecord: MEMBER,
    OffsetRecord: OFFSET,
}


def partition_of(group: str, partitions: int) -> int:
    """The partition of the internal topic that has a group: CRC-32C of its name.

    >>> partition_of("billing", 6)
    0
    """
    return int(crc32c(group.encode())) % partitions


def encode(record: Record) -> EncodedRecord:
    """The record as it stands in a batch."""
    key = _encode((_KINDS[type(record)], *record.key))
    return 0, key, None if record.value is None else _encode(record.value), ()


def decode(key: bytes | None, value: bytes | None) -> Record:
    """The record under a key.

    Raises:
        UnsupportedVersion: it is of a kind, or of a form, that this version does not know.
    """
    try:
        match _decode_key(key or b""):
            case ["group", str(group)]:
                return GroupRecord(GroupKey(group), None if value is None else _decode_group(value))
            case ["member", str(group), str(member)]:
                about = None if value is None else _decode_member(value)
                return MemberRecord(MemberKey(group, member), about)
            case ["offset", str(group), str(topic_id), int(partition)]:
                position = None if value is None else _decode_offset(value)
                return OffsetRecord(OffsetKey(group, topic_id, partition), position)
    except MALFORMED as error:
        raise UnsupportedVersion(
            f"{TOPIC} has a record that this version does not understand ({error}); start the version that wrote it, "
            "or a newer one"
        ) from None
    raise UnsupportedVersion(
        f"{TOPIC} has a record of a kind that this version does not know; start the version that wrote it"
    )
