"""What a consumer decides: which partitions are read, where each begins, and what the application is told of topics.

Pure: it takes metadata and pushes with the time; what becomes of each partition is its `Reader`'s (`reading`). Never
decodes a record: that is the application's thread's.

Which partitions are read:

=============== ========================================================== ==========================================
consumer        reads                                                      a partition begins
=============== ========================================================== ==========================================
without a group every partition of its topics, of those that come to match at `start`; one that appears after the
                its patterns, too; or those chosen                         first look at its first record
in a group      what `open` names, until `close`                           where `open` says
=============== ========================================================== ==========================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from zbroker.client.buffer import Buffer, ConsumerSettings, Ready, Shared, Start
from zbroker.client.exchange import Body, Exchange
from zbroker.client.metadata import Cluster, TopicView
from zbroker.client.patterns import is_pattern, matches
from zbroker.client.reading import Reader
from zbroker.client.records import TopicPartition
from zbroker.errors import UnknownPartition, ZBrokerError
from zbroker.protocol import messages
from zbroker.units import Address


class Sought(NamedTuple):
    """What the application said of a partition before it was read."""

    generation: int
    """Of the last that it said."""
    paused: bool
    start: Start | None = None
    """The position that was set, if any."""
    epoch: int = -1
    since: int = -1
    """The generation of that position."""


class ConsumerCore:
    """Every decision of one consumer, but for those of its group."""

    def __init__(
        self,
        settings: ConsumerSettings,
        exchange: Exchange,
        cluster: Cluster,
        random: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.exchange = exchange
        self.buffer = Buffer(settings.buffer_bytes)
        self.ready = self.buffer.ready
        self.readers: dict[TopicPartition, Reader] = {}
        self.begun = False
        self.ended = False
        """Whether every partition has reached its end, with `until_end`."""
        self.started: Callable[[Reader], None] = lambda _reader: None
        """Told of each reader that has found out where it begins."""
        self._cluster = cluster
        self._shared = Shared(
            settings, exchange, cluster, self.buffer, random, self.check_ended,
            lambda reader: self.started(reader),
        )  # fmt: skip
        self._names = tuple(topic for topic in settings.topics if not is_pattern(topic))
        self._patterns = tuple(topic for topic in settings.topics if is_pattern(topic))
        self._seen_updates = -1
        self._first_counts: dict[str, int] = {}
        """Partitions that each topic had at the first look: those beyond are new."""
        self._looked = False
        """Whether there has been a first look."""
        self._sought: dict[TopicPartition, Sought] = {}
        self._expected: set[TopicPartition] = set()
        """What is to be opened: until then there is more to read."""
        self._reported: dict[str, str] = {}
        self._by_id: dict[tuple[str, int], Reader] = {}

    # What the application asks for, on the client's thread ---

    def begin(self, now: float) -> None:
        """The first poll: where `latest` is gets fixed now."""
        if not self.begun:
            self.begun = True
            if self._patterns:
                self._cluster.want_all(now)
            for topic in self._names:
                self._cluster.want(topic, now)

    def seek(
        self, place: TopicPartition, start: Start, epoch: int, generation: int, *, paused: bool = False
    ) -> None:  # fmt: skip
        """The application set a position, from which on it reads once it is not `paused`."""
        reader = self.readers.get(place)
        if reader is None:
            self._sought[place] = Sought(generation, paused, start, epoch, generation)
        elif generation > reader.generation:
            reader.seek(start, epoch, generation)
            if paused:
                reader.pause(generation)
            self.ended = False

    def pause(self, place: TopicPartition, generation: int) -> None:
        """Nothing more of a partition until it is sought or resumed."""
        reader = self.readers.get(place)
        if reader is None:
            self._note(place, generation, paused=True)
        elif generation > reader.generation:
            reader.pause(generation)

    def resume(self, place: TopicPartition, generation: int) -> None:
        """Ends the pause of a partition of which the application does not know a position: it begins."""
        reader = self.readers.get(place)
        if reader is None:
            self._note(place, generation, paused=False)
        elif generation > reader.generation:
            reader.begin_anew(generation)
            self.ended = False

    def _note(self, place: TopicPartition, generation: int, *, paused: bool) -> None:
        before = self._sought.get(place, Sought(generation, paused))
        self._sought[place] = before._replace(generation=generation, paused=paused)

    def go_on(self, now: float) -> None:
        """The application was told of an error and calls again: try again."""
        for reader in self.readers.values():
            reader.go_on()
        for topic in list(self._reported):
            del self._reported[topic]
            self._seen_updates = -1
            if topic not in self._cluster.topics:
                self._cluster.want(topic, now)

    # What the group decides ---

    def expect(self, places: Iterable[TopicPartition]) -> None:
        """Partitions that `open` will be called for, or `close`."""
        self._expected.update(places)
        self.ended = False

    def open(
        self, place: TopicPartition, topic_id: str, start: Start, epoch: int, generation: int
    ) -> None:
        """Reads a partition of the group's from now on; `epoch` is the leader epoch before an offset, or -1."""
        self._expected.discard(place)
        reader = Reader(self._shared, place, topic_id, start, epoch=epoch, generation=generation)
        self.readers[place] = reader
        self._by_id[(topic_id, place.partition)] = reader
        if isinstance(start, int):  # it is known where the partition is before there is a record
            self.ready.append(Ready(place, generation, start))
        self._apply_sought(reader)
        self.ended = False

    def close(self, place: TopicPartition) -> None:
        """Reads a partition no more."""
        self._expected.discard(place)
        reader = self.readers.pop(place, None)
        if reader is not None:
            reader.close()
            self._by_id.pop((reader.topic_id, place.partition), None)

    def is_new(self, place: TopicPartition) -> bool:
        """Whether a partition, or its topic, appeared after the first look."""
        count = self._first_counts.get(place.topic)
        if count is None:
            return self._looked and place.topic not in self._names
        return place.partition >= count

    # What the thread calls ---

    def step(self, now: float) -> float | None:
        """Does all that is due; answers when it wants to be called again, though nothing arrives."""
        if not self.begun:
            return None
        if self._seen_updates != self._cluster.updates:
            self._seen_updates = self._cluster.updates
            self._metadata_changed()
        wanted: float | None = None
        for reader in self.readers.values():
            if reader.state != "stopped":
                due = reader.advance(now)
                if due is not None and (wanted is None or due < wanted):
                    wanted = due
        return wanted

    def on_push(
        self, push: messages.Push, body: Body, now: float, sender: Address | None = None
    ) -> None:
        """A batch or a beacon of a partition, from whoever published it."""
        reader = self._by_id.get((push.topic_id, push.partition))
        if reader is not None:
            reader.on_push(push, body, now, sender)

    # Topics and partitions ---

    def _metadata_changed(self) -> None:
        for topic in self._topics():
            view = self._cluster.topics.get(topic)
            if view is not None:
                if not self.settings.grouped:
                    self._topic_is_there(view)
                self._first_counts.setdefault(
                    topic, 0 if self._looked and topic not in self._names else len(view.leaders)
                )
            elif topic in self._cluster.missing:
                self._topic_is_missing(topic, self._cluster.missing[topic])
        self._looked = self._looked or self._cluster.updates > 0
        self.check_ended()

    def _topics(self) -> dict[str, None]:
        """Names, and what matches the patterns: what there is now, and what there was."""
        found = dict.fromkeys(self._names)
        if self._patterns:
            known = (*self._cluster.topics, *(place.topic for place in self.readers))
            found.update(dict.fromkeys(topic for topic in known if matches(self._patterns, topic)))
        return found

    def _topic_is_there(self, view: TopicView) -> None:
        chosen = self.settings.partitions
        for number in range(len(view.leaders)):
            place = TopicPartition(view.name, number)
            if chosen is not None and place not in chosen:
                continue
            reader = self.readers.get(place)
            if reader is None:
                # What appears after the first look is new: all of its records are.
                new = view.name in self._first_counts or (
                    self._looked and view.name not in self._names
                )
                start = self.settings.starts.get(place, "earliest" if new else self.settings.start)
                reader = Reader(self._shared, place, view.topic_id, start)
                self.readers[place] = reader
                self._by_id[(view.topic_id, number)] = reader
                self._apply_sought(reader)
            elif reader.topic_id != view.topic_id:
                self._by_id.pop((reader.topic_id, number), None)
                self._by_id[(view.topic_id, number)] = reader
                reader.made_again(view.topic_id)
        if chosen is not None and view.name not in self._reported:
            self._check_chosen(view)

    def _apply_sought(self, reader: Reader) -> None:
        """What the application said of a partition before there was a reader."""
        sought = self._sought.pop(reader.place, None)
        if sought is None or sought.generation <= reader.generation:
            return
        if sought.start is not None and sought.since > reader.generation:
            reader.seek(sought.start, sought.epoch, sought.since)
        if sought.paused:
            reader.pause(sought.generation)
        elif sought.generation > reader.generation:
            reader.begin_anew(sought.generation)

    def _check_chosen(self, view: TopicView) -> None:
        for place in sorted(self.settings.partitions or ()):
            if place.topic == view.name and place.partition >= len(view.leaders):
                self._report(view.name, UnknownPartition(
                    f"topic {view.name!r} has {len(view.leaders)} partitions, "
                    f"and no partition {place.partition}",
                    topic=view.name, partition=place.partition,
                ))  # fmt: skip
                return

    def _topic_is_missing(self, topic: str, error: ZBrokerError) -> None:
        if self.settings.grouped and topic in self._first_counts:
            return  # it was there: the coordinator takes its partitions away
        for reader in self.readers.values():
            if reader.place.topic == topic:
                reader.suspend()
        if topic in self._names:
            self._report(topic, error)

    def _report(self, topic: str, error: ZBrokerError) -> None:
        if topic not in self._reported:
            self._reported[topic] = error.code
            self.ready.append(Ready(TopicPartition(topic, -1), 0, -1, error=error))

    def check_ended(self) -> None:
        """Looks whether everything has been read, with `until_end`."""
        if not self.settings.until_end:
            return
        if self.settings.grouped:
            if not self.readers:
                return  # what it had been given was read, or not, before it was taken away
            known = not self._expected
        else:
            known = self._looked and all(topic in self._first_counts for topic in self._names)
        self.ended = known and all(
            reader.end is not None and reader.splice.position >= reader.end
            for reader in self.readers.values()
            if not self._is_gone(reader.place.topic)
        )

    def _is_gone(self, topic: str) -> bool:
        """Whether a topic that matched a pattern was deleted; of one that is named the application is told."""
        return topic in self._cluster.missing and topic not in self._names
