"""Messages to ZeroMQ frames and back: `[head][body]…`, behind an empty delimiter from a REQ socket.

Owns the limits on a message's shape. Whatever the frames hold, only coded errors come out of here.
Never looks into a body.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, get_args

import msgspec

from zbroker.errors import (
    MalformedMessage,
    MessageTooLarge,
    UnknownOperation,
    ZBrokerError,
    from_wire,
)
from zbroker.protocol.batch import MALFORMED
from zbroker.protocol.messages import (
    PROTOCOL_VERSION,
    ClusterChange,
    ErrorReply,
    Message,
    Push,
    Reply,
    Request,
)

HEAD_MAX = 64 * 1024
"""Largest request head, bytes."""
FRAMES_MAX = 4
"""Most frames in a request: delimiter, head and bodies."""
CLUSTER_SUBJECT = b"!cluster/"
"""Subject of pushed cluster changes; no topic's subject begins with `!`."""

Frame = bytes | memoryview

_Pushed = TypeVar("_Pushed", Push, ClusterChange)
_OPERATIONS = {struct.__struct_config__.tag for struct in get_args(Request)}
_TEXT_MAX = 200
"""Most characters of a decoder's own words in a sentence: they may quote what was sent."""

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
"""A message's head as bytes."""
_decode_request: Callable[[Frame], Request] = msgspec.msgpack.Decoder(Request).decode
_decode_reply: Callable[[Frame], Reply] = msgspec.msgpack.Decoder(Reply).decode
_decode_push = msgspec.msgpack.Decoder(Push).decode
_decode_change = msgspec.msgpack.Decoder(ClusterChange).decode


class _Id(msgspec.Struct):
    """What can be saved of a broken head, so that the error reaches the caller that waits for it."""

    id: Any = 0
    op: Any = None


_decode_id = msgspec.msgpack.Decoder(_Id).decode


class Incoming(NamedTuple):
    """A request apart: whether a delimiter stood in front, its head and its bodies."""

    delimited: bool
    head: Frame
    bodies: Sequence[Frame]


def split(frames: Sequence[Frame]) -> Incoming:
    """Takes a request's frames apart.

    Raises:
        MalformedMessage: there is no head, or there are too many frames.
    """
    if len(frames) > FRAMES_MAX:
        raise MalformedMessage(
            f"a message has at most {FRAMES_MAX} frames, and this one has {len(frames)}"
        )
    delimited = len(frames) > 1 and len(frames[0]) == 0
    rest = frames[1:] if delimited else frames
    if not rest or not len(rest[0]):
        raise MalformedMessage(
            "a message is a head, one MessagePack map, and bodies behind it; the head is missing"
        )
    return Incoming(delimited, rest[0], rest[1:])


def decode_request(head: Frame) -> Request:
    """The request in a head.

    Raises:
        MalformedMessage, UnknownOperation, MessageTooLarge: the sentence names the field.
    """
    if len(head) > HEAD_MAX:
        raise MessageTooLarge(f"a head has at most {HEAD_MAX} bytes, and this one has {len(head)}")
    try:
        return _decode_request(head)
    except msgspec.ValidationError as error:
        text = str(error)
        if text.startswith("Invalid value") and text.endswith("at `$.op`"):
            raise _wrong_operation(request_op(head)) from None
        raise MalformedMessage(f"the head does not fit its operation: {_shown(error)}") from None
    except MALFORMED as error:
        raise MalformedMessage(f"the head is not one MessagePack map: {_shown(error)}") from None


def _wrong_operation(op: str | None) -> ZBrokerError:
    if op in _OPERATIONS:
        return MalformedMessage("`op` stands in the head more than once")
    return UnknownOperation(f"operation {op!r} is not known here; see docs/protocol.md")


def _shown(error: BaseException) -> str:
    """A decoder's words with fields named as they are sent (`id`, not `$.id`), cut where long.

    >>> _shown(ValueError("Expected `int`, got `str` - at `$.id`"))
    'Expected `int`, got `str` - at `id`'
    """
    text = str(error).replace("`$.", "`")
    half = _TEXT_MAX // 2
    return text if len(text) <= _TEXT_MAX else f"{text[:half]}…{text[-half:]}"


def request_id(head: Frame) -> int:
    """The correlation number of a head that may be broken; 0 where it cannot be read, or is not worth it."""
    if len(head) > HEAD_MAX:
        return 0
    try:
        found = _decode_id(head).id
    except MALFORMED:
        return 0
    return (
        found
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 2**63
        else 0
    )


def request_op(head: Frame) -> str | None:
    """The operation of a head that may be broken, cut to a length fit for a sentence."""
    try:
        found = _decode_id(head).op
    except MALFORMED:
        return None
    return found[:40] if isinstance(found, str) else None


def error_reply(error: ZBrokerError, correlation: int) -> ErrorReply:
    """The reply that carries an error."""
    return ErrorReply(
        id=correlation, code=error.code, message=str(error), hint=error.hint,
        outcome_unknown=error.outcome_unknown, details=error.details,
    )  # fmt: skip


def decode_reply(head: Frame) -> Reply:
    """The reply in a head; an error is returned as `ErrorReply`, not raised.

    Raises:
        MalformedMessage: the head is not a reply of this protocol.
    """
    try:
        return _decode_reply(head)
    except MALFORMED as error:
        raise MalformedMessage(
            f"the server's reply is not one of this protocol: {_shown(error)}"
        ) from None


def reply_error(reply: ErrorReply) -> ZBrokerError:
    """The exception that an error reply stands for."""
    return from_wire(
        reply.code, reply.message, reply.details,
        outcome_unknown=reply.outcome_unknown, hint=reply.hint,
    )  # fmt: skip


def subject(topic: str, partition: int) -> bytes:
    """The subject under which a partition is pushed.

    >>> subject("sales", 0)
    b'sales/0/'
    """
    return f"{topic}/{partition}/".encode()


def decode_push(head: Frame) -> Push:
    """The head of a pushed batch or beacon.

    Raises:
        MalformedMessage: it is none, or of a version that is not known here.
    """
    try:
        return _of_known_version(_decode_push(head))
    except MALFORMED as error:
        raise MalformedMessage(
            f"the pushed head is not one of this protocol: {_shown(error)}"
        ) from None


def decode_change(head: Frame) -> ClusterChange:
    """The head of a pushed cluster change. Raises as `decode_push` does."""
    try:
        return _of_known_version(_decode_change(head))
    except MALFORMED as error:
        raise MalformedMessage(
            f"the pushed head is not one of this protocol: {_shown(error)}"
        ) from None


def _of_known_version(pushed: _Pushed) -> _Pushed:
    if pushed.v != PROTOCOL_VERSION:
        raise MalformedMessage(
            f"the pushed head is of protocol version {pushed.v}, and only {PROTOCOL_VERSION} is known"
        )
    return pushed


__all__ = [
    "CLUSTER_SUBJECT", "FRAMES_MAX", "HEAD_MAX", "Frame", "Incoming", "Message", "decode_change",
    "decode_push", "decode_reply", "decode_request", "encode", "error_reply", "reply_error",
    "request_id", "request_op", "split", "subject",
]  # fmt: skip
