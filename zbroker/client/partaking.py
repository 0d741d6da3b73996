"""A consumer's part in its group, in the application's thread: what is in hand, what is heard, commits, leaving.

Owns when something handed out counts as done: at the next call. What the client's thread makes of that is
`grouping`'s; what both share is in `custody`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any, NamedTuple

from zbroker.client.committing import Commit, Position
from zbroker.client.custody import Custody, Event
from zbroker.client.delivery import copied
from zbroker.client.grouping import GroupCore
from zbroker.client.guard import option
from zbroker.client.positions import Positions
from zbroker.client.records import Record, TopicPartition
from zbroker.errors import InvalidRequest, UnknownGroup, ZBrokerError

Partitions = list[TopicPartition]
OnPartitions = Callable[[Partitions], Any]


class News(NamedTuple):
    """What the application is to hear, and by which of its callbacks."""

    call: OnPartitions | None
    event: Event


class GroupPart(Positions):
    """See above; without a group it does nothing."""

    _group: GroupCore | None
    _callbacks: dict[str, OnPartitions | None]
    _request_timeout: float

    def __init__(self) -> None:
        super().__init__()
        self._calling_back = False
        self._owner: object = None
        """The thread, or task, that made the last call."""
        self._joined = False
        """Whether the client's thread was told to join the group, and the application not that it is out."""
        self._touched: set[TopicPartition] = set()
        """Partitions of which something was handed out, or skipped, since the last call."""

    def _caller(self) -> object:
        """Who calls: a consumer belongs to one thread, or task."""
        return threading.get_ident()

    def _held_back(self) -> bool:
        """In a group: whether the application is to hear something first, or the session may be over."""
        custody = self._custody
        return custody is not None and (bool(custody.events) or custody.suspended(monotonic()))

    def _has_more(self) -> bool:
        """Whether there is a reason to end a wait."""
        custody = self._custody
        if custody is None:
            return bool(self._core.ready)
        if custody.events or custody.error is not None:
            return True
        left = self._cursor.__length_hint__()  # type: ignore[attr-defined]
        return bool(self._core.ready or left) and not custody.suspended(monotonic())

    def _finish_hand(self, custody: Custody) -> None:
        """A further call: what was handed out before it is done."""
        self._owner = self._caller()
        done: dict[TopicPartition, Position] = {}
        current, rest = self._current, None
        if current is not None:
            position = self._position_in(current)
            self._positions[current.place] = position
            self._touched.add(current.place)
            if self._cursor.__length_hint__():  # type: ignore[attr-defined]
                rest = current.place
            else:
                self._current = None
        for place in self._touched:
            if place in self._positions:
                done[place] = Position(self._positions[place], self._epochs.get(place, -1))
        self._touched.clear()
        custody.call(done, rest)
        if rest is not None and custody.owned.get(rest) != self._bases.get(rest):
            self._records.clear()
            self._current = None

    def _news(self) -> Iterator[News]:
        """What the application is to hear before anything more is handed over; raises why it is out of its group."""
        custody, group = self._custody, self._group
        if custody is None or group is None:
            return
        while (event := custody.next_event()) is not None:
            yield News(self._callbacks[event.kind], event)
        error = custody.error
        if error is not None:
            if not custody.final:
                custody.error = None
                self._joined = False
            raise copied(error)

    def _heard(self, news: News) -> Iterator[Any]:
        """Calls back; yields what the callback answered, for those who can wait for it."""
        places, custody, group = news.event.places, self._custody, self._group
        assert custody is not None
        assert group is not None
        self._calling_back = True
        try:
            if news.call is not None and places:
                yield news.call(sorted(places))
        finally:
            self._calling_back = False
            if news.event.kind == "revoked":
                custody.finish(places)
                self._connection.post(lambda _now: group.on_finished(places))

    def _commit(self, offsets: Any, timeout: float | None, done: Callable[[Any], None]) -> None:
        """Puts a commit on its way; `done(error or None)` is called on the client's thread, or here."""
        self._check_open()
        custody, group = self._custody, self._group
        if custody is None or group is None:
            raise InvalidRequest(
                "this consumer has no group to commit for: pass group=, or keep positions yourself with "
                "position() and seek()"
            )
        positions = self._to_commit(offsets)
        custody.note({place: at for place, at in positions.items() if self._holds(place)})
        if not positions:
            done(None)
            return
        seconds = self._request_timeout if timeout is None else timeout
        commit = Commit(positions, done, monotonic() + seconds)
        self._connection.start()
        if not self._connection.post(lambda _now: group.commit(commit)):
            done(self._connection.failure)

    def _to_commit(self, offsets: Any) -> dict[TopicPartition, Position]:
        if offsets is None:
            given: Mapping[Any, Any] = self.position()
        elif isinstance(offsets, Record):
            given = {(offsets.topic, offsets.partition): offsets.offset + 1}
        elif isinstance(offsets, Mapping):
            given = offsets
        else:
            raise InvalidRequest(
                "what is committed is {(topic, partition): offset}, a record, or None for all that was handed over, "
                f"not {offsets!r}"
            )
        found = {}
        for place, offset in given.items():
            option(
                isinstance(place, tuple) and len(place) == 2 and isinstance(place[0], str)
                and isinstance(place[1], int) and isinstance(offset, int)
                and not isinstance(offset, bool) and offset >= 0,
                f"a position is (topic, partition): offset from 0 on, not {place!r}: {offset!r}",
            )  # fmt: skip
            where = TopicPartition(*place)
            found[where] = Position(offset, self._epochs.get(where, -1))
        return found

    def _ask_committed(self, done: Callable[[Any], None]) -> None:
        self._check_open()
        group = self._group
        if group is None:
            raise InvalidRequest("this consumer has no group: pass group=")
        deadline = monotonic() + self._request_timeout
        self._connection.start()
        if not self._connection.post(lambda _now: group.ask_committed(done, deadline)):
            done(self._connection.failure)

    def _start_leaving(self, left: Callable[[], None], timeout: float) -> bool:
        """Has the group left; False where there is nothing to leave."""
        group, custody = self._group, self._custody
        if group is None or custody is None or not self._connection.running:
            return False
        deadline = monotonic() + timeout
        keep = group.settings.instance is not None
        self._connection.post(lambda _now: group.close(left, keep=keep, deadline=deadline))
        return True


def committed_offsets(outcome: Any) -> dict[tuple[str, int], int]:
    """What a group has committed, out of the coordinator's answer; an error is raised."""
    if isinstance(outcome, UnknownGroup):
        return {}
    if isinstance(outcome, ZBrokerError):
        raise copied(outcome)
    return {
        TopicPartition(one.topic, one.partition): one.offset
        for one in outcome.offsets
        if one.offset >= 0
    }
