"""What a consumer's parts share: its settings, and the batches that wait for the application.

Owns how much may wait. The client's thread appends to `ready`, and the application's alone takes from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from zbroker.client.exchange import Exchange
from zbroker.client.metadata import Cluster
from zbroker.client.records import TopicPartition
from zbroker.client.splice import Piece
from zbroker.errors import ZBrokerError

Start = Literal["earliest", "latest"] | int | tuple[Literal["time"], int]
OutOfRange = Literal["raise", "earliest", "latest"]


class ConsumerSettings(msgspec.Struct, frozen=True):
    """What the core needs to know of the consumer's options."""

    topics: tuple[str, ...]
    partitions: frozenset[TopicPartition] | None
    start: Start
    starts: dict[TopicPartition, Start]
    on_out_of_range: OutOfRange
    fetch_bytes: int
    buffer_bytes: int
    request_timeout: float
    until_end: bool
    grouped: bool = False
    """Whether a group decides which partitions are read."""


class Ready(msgspec.Struct, gc=False):
    """What the application gets next of a partition: a batch, an error, or only a position that moved on."""

    place: TopicPartition
    generation: int
    position: int
    """The partition's position once this has been handed over."""
    piece: Piece | None = None
    error: ZBrokerError | None = None


class Buffer:
    """What waits for the application, and how much that is."""

    def __init__(self, most: int) -> None:
        self.ready: deque[Ready] = deque()
        self.bytes_in = 0
        """Bytes put into `ready`, ever; the application counts those that it took out in `bytes_out`."""
        self.bytes_out = 0
        self.stalled = False
        """Whether something waits for room."""
        self._most = most

    def full(self) -> bool:
        """Whether nothing more is to be fetched."""
        return self.bytes_in - self.bytes_out >= self._most


class Shared(msgspec.Struct, frozen=True):
    """What the readers of one consumer have in common."""

    settings: ConsumerSettings
    exchange: Exchange
    cluster: Cluster
    buffer: Buffer
    random: Callable[[], float]
    at_end: Callable[[], None]
    """Called when a reader has reached its end, with `until_end`."""
    started: Callable[[Any], None]
    """Told of each `Reader` that has found out where `start` is."""
