"""Where a consumer is: positions, seeking, pausing, lag. What `Consumer` and `AsyncConsumer` share of it.

Owns what the application's thread knows of each partition: the offset that is handed over next, and the generation,
which grows with everything that makes batches that are on their way no longer count. In a group all of that is for as
long as a partition is held: when it comes back after others had it, nothing of it is left (`_sync`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from zbroker.client.buffer import Ready, Start
from zbroker.client.connection import Connection
from zbroker.client.consuming import ConsumerCore
from zbroker.client.custody import Custody
from zbroker.client.guard import Guarded
from zbroker.client.patterns import matches
from zbroker.client.places import StartOption, parse_start
from zbroker.client.records import Record, TopicPartition
from zbroker.errors import InvalidRequest, ZBrokerError


class Positions(Guarded):
    """The part of a consumer that has to do with positions."""

    _core: ConsumerCore
    _connection: Connection
    _custody: Custody | None

    def __init__(self) -> None:
        super().__init__()
        self._records: list[Record] = []
        self._cursor: Iterator[Record] = iter(self._records)
        self._current: Ready | None = None
        """The batch that `_records` are of."""
        self._positions: dict[TopicPartition, int] = {}
        self._epochs: dict[TopicPartition, int] = {}
        self._generations: dict[TopicPartition, int] = {}
        self._next_generation = itertools.count(1)
        self._bases: dict[TopicPartition, int] = {}
        """In a group: since which generation all of this holds."""
        self._paused: set[TopicPartition] = set()
        self._bad: ZBrokerError | None = None

    def seek(self, topic: str, partition: int, offset: StartOption) -> None:
        """Sets where a partition is read next: an offset, `"earliest"`, `"latest"` or a time (see `start`)."""
        self._check_open()
        place = self._chosen_place(topic, partition)
        start = parse_start(offset)
        self._move(place)
        if isinstance(start, int):
            self._positions[place] = start
        else:
            self._positions.pop(place, None)
        self._epochs.pop(place, None)
        self._bad = None
        self._send_seek(place, start)

    def skip_damaged(self) -> None:
        """After an error that named offsets which cannot be read: goes on behind them.

        Raises:
            InvalidRequest: the last error named none.
        """
        bad = self._bad
        details = bad.details if bad is not None else {}
        topic, partition, after = (details.get(name) for name in ("topic", "partition", "next"))
        if (
            not isinstance(topic, str)
            or not isinstance(partition, int)
            or not isinstance(after, int)
        ):
            raise InvalidRequest(
                "there is nothing to skip: the last error named no damaged records"
            )
        self.seek(topic, partition, after)

    def position(self, topic: str | None = None, partition: int | None = None) -> Any:
        """The offset that is handed over next: of one partition, or of all as `{(topic, partition): offset}`.

        A record counts as handed over at the next call. None (or absent) where it is not known yet.
        """
        ready = self._core.ready
        while self._current is None and ready and ready[0].piece is None and not ready[0].error:
            item = ready.popleft()
            if item.generation >= self._generations.get(item.place, 0) and self._sync(item.place):
                self._positions[item.place] = item.position
        positions = {
            place: offset
            for place, offset in self._positions.items()
            if place.partition >= 0 and self._holds(place)
        }
        current = self._current
        if current is not None and self._holds(current.place):
            positions[current.place] = self._position_in(current)
        if topic is None:
            return positions
        return positions.get(TopicPartition(topic, 0 if partition is None else partition))

    def _position_in(self, current: Ready) -> int:
        """The offset that is handed over next of the batch in hand."""
        left = self._cursor.__length_hint__()  # type: ignore[attr-defined]
        return self._records[-left].offset if left else current.position

    def assignment(self) -> list[TopicPartition]:
        """The partitions that are read, as far as they are known yet; in a group, those that are this member's."""
        if self._custody is not None:
            return sorted(self._custody.owned.copy())
        return sorted(self._core.readers.copy())

    def high_watermarks(self) -> dict[TopicPartition, int]:
        """The first offset that is not committed yet, as last heard, of each partition."""
        return {place: reader.splice.head for place, reader in self._core.readers.copy().items()}

    def lag(self) -> dict[TopicPartition, int]:
        """How many offsets of each partition are committed and not handed over yet, as last heard."""
        positions = self.position()
        return {
            place: max(0, head - positions[place])
            for place, head in self.high_watermarks().items()
            if place in positions
        }

    @property
    def ended(self) -> bool:
        """With `until_end`: whether everything has been handed over."""
        if not self._core.ended or self._core.ready:
            return False
        current = self._current
        return current is None or not self._cursor.__length_hint__()  # type: ignore[attr-defined]

    def pause(self, topic: str | None = None, partition: int | None = None) -> None:
        """Hands over nothing of a partition, a topic or everything until `resume`.

        In a group, a partition that others have had in between is not paused any more.
        """
        self._check_open()
        for place in self._places(topic, partition):
            if self._sync(place) and place not in self._paused:
                self._keep_position(place)
                self._paused.add(place)
                self._move(place)
                self._send_pause(place)

    def resume(self, topic: str | None = None, partition: int | None = None) -> None:
        """Ends `pause`: goes on where it was; where that is not known yet, it begins as it would have without."""
        self._check_open()
        for place in self._places(topic, partition):
            if self._sync(place) and place in self._paused:
                self._paused.discard(place)
                self._generations[place] = self._new_generation()
                position = self._positions.get(place)
                if position is None:
                    self._send_resume(place)
                else:
                    self._send_seek(place, position)

    def paused(self) -> list[TopicPartition]:
        """The partitions that are paused."""
        return sorted(place for place in self._paused if self._holds(place))

    def _keep_position(self, place: TopicPartition) -> None:
        position = self.position(*place)
        if position is not None:
            self._positions[place] = position

    def _move(self, place: TopicPartition) -> None:
        """What is on its way of a partition no longer counts."""
        self._generations[place] = self._new_generation()
        if self._current is not None and self._current.place == place:
            self._records.clear()
            self._current = None

    def _new_generation(self) -> int:
        return next(self._next_generation if self._custody is None else self._custody.generations)

    def _send_seek(self, place: TopicPartition, start: Start) -> None:
        generation, paused = self._generations[place], place in self._paused
        epoch = self._epochs.get(place, -1)
        self._connection.start()
        self._connection.post(
            lambda _now: self._core.seek(place, start, epoch, generation, paused=paused)
        )

    def _send_pause(self, place: TopicPartition) -> None:
        generation = self._generations[place]
        self._connection.start()
        self._connection.post(lambda _now: self._core.pause(place, generation))

    def _send_resume(self, place: TopicPartition) -> None:
        generation = self._generations[place]
        self._connection.start()
        self._connection.post(lambda _now: self._core.resume(place, generation))

    def _chosen_place(self, topic: str, partition: int) -> TopicPartition:
        place = TopicPartition(topic, partition)
        if self._custody is not None:
            if not self._sync(place):
                raise InvalidRequest(f"{topic}/{partition} is not assigned to this consumer now")
            return place
        settings = self._core.settings
        read = topic in settings.topics or matches(settings.topics, topic)
        if not read or (settings.partitions is not None and place not in settings.partitions):
            raise InvalidRequest(f"this consumer does not read {topic}/{partition}")
        return place

    def _places(self, topic: str | None, partition: int | None) -> list[TopicPartition]:
        if topic is not None and partition is not None:
            return [self._chosen_place(topic, partition)]
        return [place for place in self.assignment() if topic is None or place.topic == topic]

    # In a group ---

    def _holds(self, place: TopicPartition) -> bool:
        """Whether what is known of a partition is of the time since it was assigned."""
        custody = self._custody
        return custody is None or (
            place in self._bases and custody.base(place) == self._bases[place]
        )

    def _sync(self, place: TopicPartition) -> bool:
        """Forgets what is known of a partition from before it was assigned; False where it is not held."""
        custody = self._custody
        if custody is None:
            return True
        base = custody.base(place)
        if base is None:
            return False
        if self._bases.get(place) != base:
            self._bases[place] = base
            self._positions.pop(place, None)
            self._epochs.pop(place, None)
            self._generations.pop(place, None)
            self._paused.discard(place)
        return True
