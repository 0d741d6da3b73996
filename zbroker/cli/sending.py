"""Records on their way from standard input to a topic: which are acknowledged, which are not, and what that means.

Owns the count of outcomes and the policy on errors. Reads no input and makes no producer: it is handed both. With
`skip`, a record that is itself at fault is told of and left out; what is not a record's fault ends the run either way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import click

from zbroker.cli.reading import InputRecord
from zbroker.cli.words import count
from zbroker.errors import (
    InvalidRecord,
    InvalidRequest,
    MessageTooLarge,
    SerializationError,
    UnknownPartition,
    ZBrokerError,
)
from zbroker.units import format_size

if TYPE_CHECKING:
    from zbroker.client.delivery import Delivery, DeliveryGroup
    from zbroker.client.records import Headers

RECORDS_FAULT = (
    InvalidRecord,
    InvalidRequest,
    MessageTooLarge,
    SerializationError,
    UnknownPartition,
)
"""Errors that another record need not meet."""

TOLD_MAX = 10
"""Skipped records that are told of one by one."""

BATCH_OVERHEAD = 1024
"""Bytes that a batch holds beside a record's key and value, rounded up."""


class Sends(Protocol):
    """What is needed of a producer."""

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        *,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers = (),
    ) -> Delivery: ...

    def send_many(
        self, topic: str, values: Sequence[bytes], keys: Sequence[bytes] | None = None
    ) -> DeliveryGroup: ...


class RecordFailed(click.ClickException):
    """A record was not delivered, and that is the end of it."""


class Sender:
    """Sends records of one topic and keeps count of what became of them.

    Args:
        limit: bytes that a record may have, as far as known.
        skip: leave out a record that is at fault instead of ending with it.
        tell: says that a record was left out.
    """

    def __init__(
        self, producer: Sends, topic: str, *, limit: int, skip: bool, tell: Callable[[str], None]
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._limit = limit
        self._skip = skip
        self._tell = tell
        self._open: deque[tuple[Sequence[int], Delivery | DeliveryGroup]] = deque()
        self.acknowledged = 0
        self.refused = 0
        """Records that are certainly not in the log."""
        self.unknown = 0
        """Records that may be in the log or not."""

    def many(
        self, numbers: Sequence[int], values: Sequence[bytes], keys: Sequence[bytes] | None
    ) -> None:
        """Sends records that have nothing but a value, and perhaps a key. Numbers count from 1."""
        if not values:
            return
        largest = len(max(values, key=len))
        if keys:
            largest += len(max(keys, key=len))
        if largest + BATCH_OVERHEAD <= self._limit:
            self._open.append((numbers, self._producer.send_many(self._topic, values, keys)))
            return
        # One of them may be refused: send_many could not say which, and how many went before.
        for at, number in enumerate(numbers):
            self.one(number, InputRecord(None if keys is None else keys[at], values[at]))

    def one(self, number: int, record: InputRecord) -> None:
        """Sends a record."""
        try:
            if len(record.value or b"") + len(record.key or b"") > self._limit:
                raise MessageTooLarge(
                    f"it is too large: topic {self._topic!r} takes {format_size(self._limit)} "
                    "at most (max_batch)"
                )
            delivery = self._producer.send(
                self._topic,
                record.value,
                record.key,
                partition=record.partition,
                timestamp=record.timestamp,
                headers=record.headers,
            )
        except ZBrokerError as error:
            self.refused += 1
            self._failed(number, error)
            return
        self._open.append(((number,), delivery))

    def refuse(self, number: int, problem: str) -> None:
        """A record that cannot even be sent."""
        self.refused += 1
        if not self._skip:
            raise RecordFailed(f"record {number}: {problem}")
        self._skipped(number, problem)

    def settle(self) -> None:
        """Counts what has been answered by now.

        Raises:
            RecordFailed: a record was not delivered, and is not to be skipped.
        """
        while self._open and self._open[0][1].done():
            self._count(*self._open.popleft())

    def summary(self) -> str:
        """What became of the records that were read, those on their way included."""
        for numbers, delivery in self._open:
            delivered, failed = _outcomes(delivery)
            self.acknowledged += delivered
            for _, error in failed:
                self._add(error)
            self.unknown += len(numbers) - delivered - len(failed)
        self._open.clear()
        parts = [f"{count(self.acknowledged, 'record')} acknowledged"]
        if self.refused:
            parts.append(f"{self.refused:,} refused")
        if self.unknown:
            parts.append(f"{self.unknown:,} of unknown outcome")
        return ", ".join(parts)

    @property
    def complete(self) -> bool:
        """Whether every record that was read is acknowledged."""
        return not (self._open or self.refused or self.unknown)

    def _count(self, numbers: Sequence[int], delivery: Delivery | DeliveryGroup) -> None:
        delivered, failed = _outcomes(delivery)
        self.acknowledged += delivered
        for _, error in failed:
            self._add(error)
        for position, error in failed:
            self._failed(numbers[position], error)

    def _add(self, error: ZBrokerError) -> None:
        if error.outcome_unknown:
            self.unknown += 1
        else:
            self.refused += 1

    def _failed(self, number: int, error: ZBrokerError) -> None:
        from zbroker.cli.failures import advised

        if self._skip and isinstance(error, RECORDS_FAULT):
            self._skipped(number, str(error).rstrip("."))
            return
        raise RecordFailed(f"record {number}: {advised(error)}")

    def _skipped(self, number: int, problem: str) -> None:
        told = self.refused + self.unknown
        if told <= TOLD_MAX:
            self._tell(f"record {number} skipped: {problem}")
        elif told == TOLD_MAX + 1:
            self._tell("more records are skipped; they are counted at the end")


def _outcomes(delivery: Delivery | DeliveryGroup) -> tuple[int, list[tuple[int, ZBrokerError]]]:
    """How many records are in the log by now, and which are not, by their position."""
    from zbroker.client.delivery import DeliveryGroup

    if isinstance(delivery, DeliveryGroup):
        return delivery.outcomes()
    if not delivery.done():
        return 0, []
    error = delivery.exception(0)
    return (1, []) if error is None else (0, [(0, error)])
