"""Every error that zbroker reports: its wire code, whether a retry can help, what a client should do.

Owns the vocabulary shared by the wire, the client, the command line and the configuration. Each
class is one code; a node answers a request with the code, a sentence and details, and the client
raises the class again from those (`from_wire`). Never decides anything: it only names what went
wrong.

Hints, from the most to the least hopeful:

========= ==========================================================================================
retry     send the same request again after a pause: the cause passes by itself
refresh   fetch the metadata again (and reconnect to the leader it names), then retry
give_up   the request itself is at fault, or its data are: sending it again cannot help
========= ==========================================================================================
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Hint = Literal["retry", "refresh", "give_up"]


class ZBrokerError(Exception):
    """What every zbroker error is.

    Attributes:
        code: the wire code, stable across versions.
        hint: `"retry"`, `"refresh"` or `"give_up"`.
        retriable: whether sending the same request again can succeed.
        message: the sentence that says what is wrong and what to do.
        details: facts for programs, such as the offsets that exist; empty where there are none.
        outcome_unknown: True where the request may have taken effect although it failed.
    """

    code: ClassVar[str] = "internal"
    hint: Hint = "give_up"
    unknown_by_default: ClassVar[bool] = False

    def __init__(
        self, message: str = "", /, *, outcome_unknown: bool | None = None, **details: Any
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.outcome_unknown = (
            self.unknown_by_default if outcome_unknown is None else outcome_unknown
        )

    @property
    def retriable(self) -> bool:
        """Whether sending the same request again can succeed."""
        return self.hint != "give_up"

    def __str__(self) -> str:
        return self.message or self.__class__.__doc__ or self.code

    def __reduce__(self) -> tuple[Any, ...]:
        facts = (self.message, self.outcome_unknown, self.details, self.hint)
        return _rebuild, (type(self), *facts)


def _rebuild(
    kind: type[ZBrokerError],
    message: str,
    outcome_unknown: bool,
    details: dict[str, Any],
    hint: Hint,
) -> ZBrokerError:
    error = kind(message, outcome_unknown=outcome_unknown, **details)
    if hint != kind.hint:
        error.hint = hint
    return error


# What a node answers: the message itself ---


class InternalError(ZBrokerError):
    """The node met a state that it does not understand; its log has the particulars."""

    code = "internal"


class MalformedMessage(ZBrokerError):
    """The frames are not a message of this protocol; the sentence names the field."""

    code = "malformed"


class UnknownOperation(ZBrokerError):
    """The operation in the head is not one that this node knows."""

    code = "unknown_operation"


class UnsupportedVersion(ZBrokerError):
    """None of the versions offered is spoken here, or the data come from a newer version."""

    code = "unsupported_version"


class MessageTooLarge(ZBrokerError):
    """A frame, a batch or a record is larger than the node's or the topic's limit."""

    code = "too_large"


class ClusterMismatch(ZBrokerError):
    """The node belongs to another cluster than the client expects."""

    code = "cluster_mismatch"


# What a node answers: batches and records ---


class CorruptBatch(ZBrokerError):
    """A batch's CRC-32C does not match its bytes: it was damaged on its way."""

    code = "corrupt_batch"
    hint = "retry"


class InvalidBatch(ZBrokerError):
    """A batch contradicts itself: a length, the span or the payload does not fit its header."""

    code = "invalid_batch"


class UnsupportedAttribute(ZBrokerError):
    """A batch is compressed in a way, or carries a critical attribute, that is not known here."""

    code = "unsupported_attribute"


class InvalidRecord(ZBrokerError):
    """A batch is malformed inside; details give the offsets `first` to `next` to step over."""

    code = "invalid_record"


class DataDamaged(ZBrokerError):
    """Records on disk are damaged; details give the range `first` to `next` that cannot be read."""

    code = "damaged"


# What a node answers: topics and partitions ---


class InvalidTopic(ZBrokerError):
    """A topic name that the naming rules refuse."""

    code = "invalid_topic"


class InvalidSetting(ZBrokerError):
    """A setting that is unknown, out of its range, or cannot be met by this cluster."""

    code = "invalid_setting"


class UnknownTopic(ZBrokerError):
    """There is no topic of that name or id. Topics are not created by using them."""

    code = "unknown_topic"
    hint = "refresh"


class UnknownPartition(ZBrokerError):
    """The topic has no partition of that number."""

    code = "unknown_partition"
    hint = "refresh"


class TopicExists(ZBrokerError):
    """A topic of that name, or of one that differs only in case, exists."""

    code = "topic_exists"


class TopicChanged(ZBrokerError):
    """The topic was deleted, or made again: the request's topic id is not the present one."""

    code = "topic_changed"
    hint = "refresh"


class NotLeader(ZBrokerError):
    """This node does not lead the partition; details may name the node that does."""

    code = "not_leader"
    hint = "refresh"


class StaleEpoch(ZBrokerError):
    """The request and the node do not agree on the partition's leader epoch: one of them is behind."""

    code = "stale_epoch"
    hint = "refresh"


class NotEnoughReplicas(ZBrokerError):
    """Fewer in-sync replicas than `min_insync` have the record: whether it stays is not known."""

    code = "not_enough_replicas"
    hint = "retry"
    unknown_by_default = True


# What a node answers: reading ---


class OffsetOutOfRange(ZBrokerError):
    """The offset is not in the log; details give the range `start` to `end` that is."""

    code = "offset_out_of_range"


class Diverged(ZBrokerError):
    """The log no longer holds the reader's last record; details give `epoch` and `end`."""

    code = "diverged"


# What a node answers: producing ---


class UnknownProducer(ZBrokerError):
    """The partition does not know this producer id, and the batch does not start at sequence 0."""

    code = "unknown_producer"


class OutOfOrderSequence(ZBrokerError):
    """A batch before this one is missing: its sequence does not continue the producer's last."""

    code = "out_of_order_sequence"


class ProducerFenced(ZBrokerError):
    """A newer epoch of the same producer has written: this one is a zombie."""

    code = "producer_fenced"


class InvalidRequest(ZBrokerError):
    """The request is well formed, but asks for something that is not allowed."""

    code = "invalid_request"


# What a node answers: groups ---


class NotCoordinator(ZBrokerError):
    """This node does not coordinate the group; details may name the node that does."""

    code = "not_coordinator"
    hint = "refresh"


class UnknownGroup(ZBrokerError):
    """There is no group of that name."""

    code = "unknown_group"


class GroupNotEmpty(ZBrokerError):
    """The group has members: what was asked for needs them gone."""

    code = "group_not_empty"


class MemberFenced(ZBrokerError):
    """The member is out of its group: its session ended, or another took its name; others may have its partitions."""

    code = "member_fenced"


class StaleMemberEpoch(ZBrokerError):
    """The member's epoch is not the present one: a heartbeat tells it what it owns now."""

    code = "stale_member_epoch"
    hint = "retry"


class NotOwned(ZBrokerError):
    """The partition is not the member's to commit, or not any more."""

    code = "not_owned"


# What a node answers: its own state ---


class RequestTimedOut(ZBrokerError):
    """The node could not finish the request in the time that it allowed."""

    code = "timed_out"
    hint = "retry"
    unknown_by_default = True


class DiskFull(ZBrokerError):
    """The node's disk is full: it serves reads and refuses writes until there is room."""

    code = "disk_full"
    hint = "retry"


class StorageFailed(ZBrokerError):
    """The node's disk failed; the node is stopping."""

    code = "storage_failed"
    hint = "refresh"
    unknown_by_default = True


class NotReady(ZBrokerError):
    """The node is starting: it is still reading its logs."""

    code = "not_ready"
    hint = "retry"


class ShuttingDown(ZBrokerError):
    """The node is stopping in order and takes nothing new."""

    code = "shutting_down"
    hint = "refresh"


class Overloaded(ZBrokerError):
    """Too many requests or bytes are in flight at the node, or too many clients are connected."""

    code = "overloaded"
    hint = "retry"


# What never crosses the wire ---


class ConfigError(ZBrokerError):
    """A configuration file or a setting on the command line is wrong; the sentence says where."""

    code = "config"


class DataFolderError(ZBrokerError):
    """The data folder cannot be used: in use, of a newer version, of another node, not writable."""

    code = "data_folder"


class AddressInUse(ZBrokerError):
    """One of the node's ports is taken by another process."""

    code = "address_in_use"


class ServersUnreachable(ZBrokerError):
    """No server answered in time."""

    code = "unreachable"
    hint = "retry"


class DeliveryTimeout(ZBrokerError):
    """A record was not acknowledged within `delivery_timeout`."""

    code = "delivery_timeout"


class BufferFull(ZBrokerError):
    """The producer's buffer has no room, and it was told to raise rather than to wait."""

    code = "buffer_full"
    hint = "retry"


class ClientClosed(ZBrokerError):
    """The client was closed, or its process forked after it was opened."""

    code = "closed"


class SerializationError(ZBrokerError):
    """A serializer or deserializer refused a key or a value."""

    code = "serialization"


class WaitTimedOut(ZBrokerError, TimeoutError):
    """A local wait ran out (`result`, `flush`); what was waited for goes on."""

    code = "wait_timed_out"
    hint = "retry"


LOCAL_ERRORS: tuple[type[ZBrokerError], ...] = (
    ConfigError,
    DataFolderError,
    AddressInUse,
    ServersUnreachable,
    DeliveryTimeout,
    BufferFull,
    ClientClosed,
    SerializationError,
    WaitTimedOut,
)
"""Errors that arise in a process of the user's and are never sent."""

BY_CODE: dict[str, type[ZBrokerError]] = {
    kind.code: kind for kind in ZBrokerError.__subclasses__() if kind not in LOCAL_ERRORS
}
"""Wire code → class, in the order of this module: what nodes answer."""


def from_wire(
    code: str,
    message: str,
    details: dict[str, Any],
    *,
    outcome_unknown: bool = False,
    hint: Hint | None = None,
) -> ZBrokerError:
    """The exception for an error reply.

    A code that is not known here, from a newer node, becomes an `InternalError` that names it, has
    it in `.details["code"]`, and keeps the hint that the node gave.

    >>> from_wire("unknown_topic", "there is no topic 'x'", {}).retriable
    True
    """
    kind = BY_CODE.get(code)
    facts = {str(name): value for name, value in details.items()}
    facts.pop("outcome_unknown", None)
    if kind is not None:
        return kind(message, outcome_unknown=outcome_unknown, **facts)
    facts["code"] = code
    error = InternalError(f"{message} ({code})", outcome_unknown=outcome_unknown, **facts)
    if hint is not None:
        error.hint = hint
    return error
