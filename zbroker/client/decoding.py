"""Batches into records, and keys and values into what the application's deserializers make of them.

Owns the exact records of a batch: those from its first offset that counts on. Runs in the application's thread. Never
moves a position.
"""

from __future__ import annotations

from typing import Any

from zbroker.client.buffer import Ready
from zbroker.client.records import Record
from zbroker.client.serializers import Deserializer, deserializer
from zbroker.errors import SerializationError, ZBrokerError
from zbroker.protocol.batch import APPEND_TIME, decode_rows


class Decoder:
    """What one consumer makes of batches."""

    def __init__(self, values: Deserializer, keys: Deserializer) -> None:
        self._value_of = deserializer(values)
        self._key_of = deserializer(keys)

    def decode(self, item: Ready) -> tuple[list[Record], Ready | None]:
        """A batch's records, and what is left of it when one in its middle cannot be deserialized.

        Raises:
            InvalidRecord, SerializationError, …: details give the offsets `first` to `next` to step over.
        """
        records = _records(item)
        if self._value_of is None and self._key_of is None:
            return records, None
        return self._deserialized(records, item)

    def _deserialized(
        self, records: list[Record], item: Ready
    ) -> tuple[list[Record], Ready | None]:
        value_of, key_of = self._value_of or _same, self._key_of or _same
        out: list[Record] = []
        for record in records:
            try:
                value = None if record.value is None else value_of(record.value)
                key = None if record.key is None else key_of(record.key)
            except Exception as problem:
                if out:  # what came before it is handed over first; the rest stays in front
                    assert item.piece is not None
                    piece = type(item.piece)(
                        item.piece.data, item.piece.at, item.piece.header, record.offset
                    )
                    return out, Ready(item.place, item.generation, item.position, piece)
                error = SerializationError(
                    f"the record at offset {record.offset} of {record.topic}/{record.partition} cannot be "
                    f"deserialized: {type(problem).__name__}: {problem}",
                    topic=record.topic, partition=record.partition, first=record.offset, next=record.offset + 1,
                )  # fmt: skip
                raise error from problem
            out.append(
                Record(
                    record.topic, record.partition, record.offset, record.timestamp, key, value, record.headers
                )
            )  # fmt: skip
        return out, None


def _records(item: Ready) -> list[Record]:
    piece = item.piece
    assert piece is not None
    header = piece.header
    topic, partition = item.place
    base = header.base_offset
    try:
        rows: list[Any] = decode_rows(piece.data, piece.at, header)
    except ZBrokerError as error:
        error.details.update(topic=topic, partition=partition)
        error.details.setdefault("first", base)
        error.details.setdefault("next", header.next_offset)
        raise
    end = item.position
    if piece.first > base or end < header.next_offset:
        rows = rows[piece.first - base : end - base]
        base = piece.first
    stamp = header.append_time if header.stamp_attributes & APPEND_TIME else None
    start = header.base_timestamp
    try:
        if stamp is None:
            return [
                Record(topic, partition, offset, start + row.delta, row.key, row.value, row.headers)
                for offset, row in enumerate(rows, base)
            ]
        return [
            Record(topic, partition, offset, stamp, row.key, row.value, row.headers)
            for offset, row in enumerate(rows, base)
        ]
    except AttributeError:  # records that compaction removed
        return [
            Record(
                topic, partition, offset, start + row.delta if stamp is None else stamp,
                row.key, row.value, row.headers,
            )
            for offset, row in enumerate(rows, base)
            if row is not None
        ]  # fmt: skip


def _same(value: Any) -> Any:
    return value
