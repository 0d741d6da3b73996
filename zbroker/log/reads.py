"""What is being read of one log: refuses, remembers where to go on, and judges what comes back.

Owns the readers' side of `Log`: which request goes to the read lane, indexes that were loaded for it, and what an error
means once the log has moved on meanwhile. `reading` does the work on files; the log's own state is never changed here,
but for damage that a reader has found.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zbroker.errors import DataDamaged, NotReady, OffsetOutOfRange, StorageFailed, ZBrokerError
from zbroker.log.events import Event, Found, ReadDone
from zbroker.log.reading import FindTime, Place, Read, Span, damaged
from zbroker.log.rebuild import merge
from zbroker.log.segment import Segment
from zbroker.log.storage import Completion

if TYPE_CHECKING:
    from zbroker.log.log import Log

INDEXES_LOADED = 8
PLACES_REMEMBERED = 64


class Reads:
    """The readers of one log.

    Attributes:
        going_below: offsets below it are on their way out.

    Where segments are exchanged, nobody reads in them meanwhile (`hold`): a file that changes its content between two
    looks at it would mislead a reader without any check failing.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._generation = 0
        self.reset()

    def reset(self) -> None:
        """The log is opened anew."""
        self._generation += 1
        self.going_below = 0
        self._places: dict[int, tuple[int, int]] = {}
        self._loaded: dict[int, Segment] = {}
        self._reading: dict[int, tuple[int, int]] = {}
        self._held_range = (0, 0)
        self._held: list[Callable[[], None]] = []

    def hold(self, first: int, behind: int) -> bool:
        """Lets nobody begin to read in a range of offsets; whether nobody is reading there any more."""
        self._held_range = (first, behind)
        return not any(_overlap(span, self._held_range) for span in self._reading.values())

    def release(self) -> None:
        """Who was held back reads now."""
        self._held_range = (0, 0)
        held, self._held = self._held, []
        for ask in held:
            ask()

    def _submit(
        self, kind: type[Read] | type[FindTime], span: tuple[int, int], **fields: Any
    ) -> None:
        request = self._log.submit("read", kind, **fields)
        if span[0] < span[1]:
            self._reading[id(request)] = span

    def done(self, completion: Completion) -> Event:
        """A read or a search is over."""
        self._reading.pop(id(completion.request), None)
        if isinstance(completion.request, Read):
            return self._read_done(completion)
        return self._found(completion)

    def invalidate(self) -> None:
        """The log is being cut: what is under way may have read what is no more."""
        self._generation += 1
        self._places.clear()
        self._loaded.clear()

    def forget(self, gone: set[int]) -> None:
        """These segments are gone, by their base offsets."""
        self._loaded = {base: s for base, s in self._loaded.items() if base not in gone}
        self._places = {next_: at for next_, at in self._places.items() if at[0] not in gone}

    def read(self, token: Any, offset: int, max_bytes: int, limit: int, first: int) -> None:
        """See `Log.read` and `Log.read_copy`, which differ in the `first` offset that may be read."""
        log = self._log
        refusal = self._refusal(offset, first)
        limit = min(limit, log.written_offset)
        place = None
        if refusal is None and offset < limit:
            place = self._place(offset)
            if _overlap((place.base, place.end), self._held_range):
                self._held.append(lambda: self.read(token, offset, max_bytes, limit, first))
                return
        self._submit(
            Read,
            (0, 0) if place is None else (place.base, place.end),
            token=token,
            place=place,
            offset=offset,
            limit=limit,
            max_bytes=max_bytes,
            interval=log.settings.index_interval,
            generation=self._generation,
            refusal=refusal,
        )

    def _refusal(self, offset: int, first: int) -> ZBrokerError | None:
        log = self._log
        if log.state not in ("open", "closing"):
            return log.not_open()
        if not first <= offset <= log.end_offset:
            return self._out_of_range(offset)
        for lost, behind in log.damaged:
            if lost <= offset < behind:
                return damaged(lost, behind)
        return None

    def _place(self, offset: int) -> Place:
        log = self._log
        at = bisect_right(log.segments, offset, key=_base) - 1
        segment = log.segments[max(at, 0)]
        base, position = self._places.pop(offset, (-1, -1))
        if base == segment.base:
            return Place(segment.base, segment.size, segment.end, position, follows=True)
        position = -1 if segment.index is None else segment.index.find(offset)
        return Place(segment.base, segment.size, segment.end, position)

    def _read_done(self, completion: Completion) -> Event:
        log = self._log
        request: Read = completion.request  # type: ignore[assignment]
        span: Span | None = completion.result
        error = self._reading_error(completion.error, request.offset, request.generation)
        if isinstance(error, DataDamaged):
            first, last = error.details["first"], error.details["next"]
            log.damaged = merge([*log.damaged, (first, last)])
        if error is not None or span is None:
            return ReadDone(request.token, request.offset, request.offset, b"", error)
        assert request.place is not None or not span.chunk
        if request.place is not None:
            self._remember(request.place.base, span)
        return ReadDone(request.token, span.base, span.next, span.chunk)

    def _reading_error(
        self, error: OSError | ZBrokerError | None, offset: int, generation: int
    ) -> ZBrokerError | None:
        """What an error means, given what has happened to the log since the read was asked for."""
        log = self._log
        if generation != self._generation:
            return NotReady("the log was truncated while it was read; read it again")
        if error is None:
            return None
        if offset < max(log.start_offset, self.going_below):
            return self._out_of_range(offset)
        if isinstance(error, ZBrokerError):
            return error
        at = bisect_right(log.segments, offset, key=_base) - 1
        if isinstance(error, FileNotFoundError) and at >= 0:
            return damaged(log.segments[at].base, log.segments[at].end)
        return StorageFailed(f"reading offset {offset} failed: {error}", outcome_unknown=False)

    def _remember(self, base: int, span: Span) -> None:
        """Keeps where the next read will probably begin, and an index that was loaded."""
        log = self._log
        if span.position >= 0:
            self._places[span.next] = (base, span.position)
            if len(self._places) > PLACES_REMEMBERED:
                del self._places[next(iter(self._places))]
        if span.index is None:
            return
        at = bisect_right(log.segments, base, key=_base) - 1
        if at < 0 or at == len(log.segments) - 1 or log.segments[at].base != base:
            return
        segment = log.segments[at]
        segment.index, segment.indexed = span.index, segment.size
        self._loaded[base] = segment
        if len(self._loaded) > INDEXES_LOADED:
            oldest = next(iter(self._loaded))
            self._loaded.pop(oldest).index = None

    def find_time(self, token: Any, timestamp: int, limit: int) -> None:
        """Looks for the first record with a timestamp at or after the one asked for; ends in `Found`.

        Args:
            timestamp: ms since the epoch.
            limit: where to stop: the high watermark.
        """
        log = self._log
        if log.state not in ("open", "closing"):
            log.refuse(lambda error: Found(token, -1, -1, error), log.not_open())
            return
        if log.segments and _overlap((log.segments[0].base, log.written_offset), self._held_range):
            self._held.append(lambda: self.find_time(token, timestamp, limit))
            return
        limit = min(limit, log.written_offset)
        places = [
            Place(s.base, s.size, s.end, -1 if s.index is None else s.index.find_time(timestamp))
            for s in log.segments
            if s.end > log.start_offset and s.base < limit and s.max_timestamp >= timestamp
        ]
        self._submit(
            FindTime,
            (places[0].base, places[-1].end) if places else (0, 0),
            token=token,
            places=places,
            start=log.start_offset,
            limit=limit,
            timestamp=timestamp,
            interval=log.settings.index_interval,
            generation=self._generation,
        )

    def _found(self, completion: Completion) -> Event:
        log = self._log
        request: FindTime = completion.request  # type: ignore[assignment]
        offset, timestamp = completion.result or (request.limit, -1)
        error = self._reading_error(completion.error, request.start, request.generation)
        if isinstance(error, OffsetOutOfRange | DataDamaged):
            error = NotReady("segments were removed while they were searched; search again")
        if error is not None:
            return Found(request.token, request.limit, -1, error)
        return Found(request.token, max(offset, log.start_offset), timestamp)

    def _out_of_range(self, offset: int) -> OffsetOutOfRange:
        log = self._log
        return OffsetOutOfRange(
            f"offset {offset} is not in the log, which has {log.start_offset} to {log.end_offset}",
            start=log.start_offset, end=log.end_offset,
        )  # fmt: skip


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _base(segment: Segment) -> int:
    return segment.base
