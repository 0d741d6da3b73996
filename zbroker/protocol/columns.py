"""A batch's payload out of columns: what a producer has of many records, encoded at once.

Pure. The bytes are those of `batch.encode_batch` over the same records as rows. Values of one length that have neither
keys nor headers, which is most of what is measured, cost a copy: all that differs between two such records is the
value, so the bytes around it are a separator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, repeat

import msgspec

from zbroker.protocol.batch import HEADER_SIZE, Headers

Runs = Sequence[tuple[int, int]]
"""(index, timestamp delta in ms): from that record on, up to the next run, the delta is this. The first is at 0."""

RUN_RECORDS = 8
"""Records that a run has at least, on average, for separators to be worth while."""

_RECORD = b"\x94"
_NIL = b"\xc0"
_NO_HEADERS = b"\x90"
_HEADER_ROOM = bytes(HEADER_SIZE)

_encode = msgspec.msgpack.Encoder().encode
_encode_into = msgspec.msgpack.Encoder().encode_into


class _Row(msgspec.Struct, array_like=True, gc=False):
    """A record as it is encoded: unlike a tuple, nothing that the collector has to visit."""

    delta: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def encode_columns(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None,
    headers: Sequence[Headers] | None,
    runs: Runs,
    *,
    same_length: bool = False,
    size_hint: int = 0,
) -> bytearray:
    """Room for a batch's header, and behind it the payload.

    Args:
        values: at least one.
        keys: one a value, or None where none has one.
        headers: the same.
        same_length: every value is bytes, all of one length.
        size_hint: about how many bytes the payload needs.
    """
    count = len(values)
    if same_length and keys is None and headers is None and len(runs) * RUN_RECORDS <= count:
        return _join(values, runs)  # type: ignore[arg-type]
    payload = bytearray(HEADER_SIZE + size_hint)
    rows = list(
        map(
            _Row,
            chain.from_iterable(repeat(delta, end - first) for first, end, delta in _spans(runs, count)),
            repeat(None) if keys is None else keys,
            values,
            repeat(()) if headers is None else headers,
        )
    )  # fmt: skip
    _encode_into(rows, payload, HEADER_SIZE)
    return payload


def _join(values: Sequence[bytes], runs: Runs) -> bytearray:
    count, before = len(values), _binary_head(len(values[0] or b""))
    parts: list[bytes] = [_HEADER_ROOM, _array_head(count)]
    for first, end, delta in _spans(runs, count):
        head = b"".join((_RECORD, _encode(delta), _NIL, before))
        parts += head, (_NO_HEADERS + head).join(values[first:end]), _NO_HEADERS
    return bytearray().join(parts)


def _spans(runs: Runs, count: int) -> Iterable[tuple[int, int, int]]:
    """(first, end, delta) of the runs that hold anything; those from `count` on hold nothing."""
    ends = [*(first for first, _ in runs[1:]), count]
    for (first, delta), end in zip(runs, ends, strict=True):
        if first < min(end, count):
            yield first, min(end, count), delta


def _array_head(count: int) -> bytes:
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def _binary_head(length: int) -> bytes:
    if length < 1 << 8:
        return b"\xc4" + length.to_bytes(1, "big")
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")
