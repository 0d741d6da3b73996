"""`Consumer`: records out of topics, for one thread.

The face: it waits, and calls back. What it hands over, and what of it is done, is `handing`'s.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from types import TracebackType
from typing import Any

from zbroker.client.custody import Custody, Flow
from zbroker.client.delivery import copied
from zbroker.client.guard import check_timeout, option, wait_event
from zbroker.client.handing import CLOSE_TIMEOUT, MAX_RECORDS, ConsumerBase
from zbroker.client.partaking import committed_offsets
from zbroker.client.records import Record
from zbroker.errors import ClientClosed, InvalidRequest


class Consumer(ConsumerBase):
    """Reads topics: whole, or shared with the other members of a group. For one thread, but for `wakeup()` and
    `close()`.

    Args:
        servers: `"host:port"`, several with commas or as a list: any of the cluster's nodes.
        topics: one or more names, or patterns in which `*` stands for any characters, such as `"sensors.*"`.
        group: the group's name. Its members share the partitions of their topics, each of which one of them reads,
            from the committed offset on, or from `start` where there is none.
        instance: a name that is this process's for good (a static member): when it is closed, or crashes, and is back
            within `session_timeout`, its partitions have waited for it.
        start: where each partition begins: `"earliest"`, `"latest"` (what is committed after the first `poll`), an
            offset, a `datetime` (naive: local time), a `timedelta` (so long ago), `("time", milliseconds)`, or a dict
            of these by (topic, partition). A partition that is added later begins at its start.
        partitions: numbers (of a single topic) or (topic, number) pairs; all if left out. Not in a group.
        on_out_of_range: when the position is not in the log any more (retention has passed it): `"raise"`
            `OffsetOutOfRange` with the range, or go on at `"earliest"` or `"latest"` with a warning in the log. Left
            out: in a group `"earliest"`; else as `start` says where that is `"earliest"` or `"latest"`, else raise.
            What `seek` sets always raises.
        until_end: end the iteration at the offsets that were committed at the first `poll`; in a group, of those
            partitions that this member has.
        auto_commit: commit what is done every `commit_interval` seconds, before partitions are given up, and at
            `close()`. A record is done at the next call after it was handed over; in an iteration, when the next one
            is asked for.
        session_timeout: seconds without a sign of life after which the group gives this member's partitions to others.
        max_poll_interval: seconds without a call after which it leaves the group, being stuck.
        assignor: `"sticky"` or `"range"`; the one that most members name.
        rack: the node or rack that this process is near; partitions led there are preferred.
        on_assigned, on_revoked, on_lost: called with a list of (topic, partition), within `poll` or the iteration:
            before the first record of partitions that are new; when they are to be given up and nothing of them is in
            hand any more, to finish what was begun and to `commit()`; when others may have them already. They may
            `seek` and `commit`, not poll.
        buffer_bytes: how much may wait to be handed over; then nothing is fetched.
        fetch_bytes: about how much one fetch brings.
        request_timeout: seconds that a node has to answer, and that `commit()` takes at most unless told.
        deserializer: for values: `"msgpack"`, `"json"` or a function; None passes through.
        key_deserializer: the same for keys.
        sub_rcvhwm: messages that ZeroMQ keeps for this consumer; what it drops beyond is fetched.
        client_id: a name for this client's thread and log lines, and for those who describe the group.

    Errors that name offsets (`DataDamaged`, `InvalidRecord`, `SerializationError`) are raised in place of the records:
    `skip_damaged()` or `seek()` goes on behind them, calling again tries again. After `Diverged` and `TopicChanged`
    the next call goes on by itself. Servers that cannot be reached are tried for ever.

    `Diverged` comes after an unclean election: a partition's log lost records that had been handed over. It is raised
    once, with `details["topic"]`, `["partition"]`, and the range `["first"]` to before `["next"]`: what was handed over
    at these offsets is no longer what is there. The next call goes on at `first`, with the records that are there now.
    A new leader that has everything, as it does after any other election, is not noticed.

    `MemberFenced` comes when the member is out of its group, and others may have its partitions: what is in hand of
    them may be processed by others too, and cannot be committed. `details["reason"]` is `"session"` (it was not heard
    of in time), `"max_poll_interval"` (it made no call) or `"replaced"` (another process uses its `instance`). The next
    call joins again; but one that was replaced stays out, and every call raises: the two would throw out each other.
    """

    def _prepare(self) -> None:
        self._data = threading.Event()
        self._machine.signal = self._data.set
        self._busy: int | None = None
        self._looping = False
        """Whether an iteration has handed out a record and waits to be asked for the next one."""
        self._closing = False

    def poll(self, timeout: float | None = 1.0, max_records: int = MAX_RECORDS) -> list[Record]:
        """Up to `max_records` records; waits up to `timeout` seconds (None: for ever) while there are none.

        Returns:
            What is there, as soon as there is something; an empty list when there was nothing in time, after
            `wakeup()`, and at the end with `until_end`.

        Raises:
            MemberFenced: see above.
        """
        check_timeout(timeout)
        option(max_records >= 1, f"max_records is 1 or more, not {max_records!r}")
        self._enter()
        try:
            self._begin()
            self._hear()
            found = self._take(max_records)
            if found or timeout == 0:
                self._check_running()
                return found
            deadline = None if timeout is None else monotonic() + timeout
            while not found and self._wait(deadline):
                self._hear()
                found = self._take(max_records)
            return found
        finally:
            self._exit()

    def __iter__(self) -> Iterator[Record]:
        """Records, for ever; ends at the end with `until_end`, after `wakeup()` and after `close()`."""
        while True:
            self._enter()
            try:
                if self._refusal is not None and self._records:
                    return
                self._begin()
                self._hear()
                while not self._has_batch():
                    if not self._wait(None):
                        return
                    self._hear()
            except ClientClosed:
                if self._records or self._core.begun:
                    return
                raise
            finally:
                self._exit()
            if self._custody is None:
                yield from self._cursor
            else:
                yield from self._flow(self._custody)

    def _flow(self, custody: Custody) -> Iterator[Record]:
        """The batch in hand; ends before its end where something is to be heard or decided first."""
        assert self._current is not None
        place = self._current.place
        custody.flow = Flow(place, self._records, self._cursor, self._epochs[place])
        custody.idle_since = monotonic()
        self._looping = True
        try:
            for record in self._cursor:
                yield record
                if custody.interrupted:
                    return
        finally:
            self._looping = False

    def _enter(self) -> None:
        me = threading.get_ident()
        if self._busy is not None and self._busy != me:
            raise InvalidRequest("a Consumer belongs to one thread; another one is in poll() now")
        self._busy = me

    def _exit(self) -> None:
        self._busy = None
        super()._exit()

    def _wait(self, deadline: float | None) -> bool:
        """Waits until something is ready; False when time is up, at the end, or after `wakeup()`."""
        data = self._data
        while True:
            data.clear()
            self._check_running()
            if self._has_more():
                return True
            if self._woken:
                self._woken = False
                return False
            if self._until_end and self._core.ended:
                return False
            if not wait_event(data, None if deadline is None else deadline - monotonic()):
                return False

    # In a group ---

    def _hear(self) -> None:
        for news in self._news():
            for _ in self._heard(news):
                pass

    def commit(self, offsets: Any = None, timeout: float | None = None) -> None:
        """Commits positions for the group; returns once they are on the disks of the in-sync replicas.

        Args:
            offsets: `{(topic, partition): offset}`, the offset being the first that is not done; a record, with which
                its partition is done up to and with it; or None: everything that was handed over so far.
            timeout: seconds; `request_timeout` if left out.

        Raises:
            NotOwned: a partition is not this member's, or not any more; details name it.
            MemberFenced: the member is out of its group.
            RequestTimedOut: nobody answered in time; whether it is committed is not known.
        """
        check_timeout(timeout)
        if self._custody is not None and self._custody.error is not None:
            self._hear()
        answer = _Answer()
        self._commit(offsets, timeout, answer.set)
        error = answer.wait(self._check_running)
        if error is not None:
            raise copied(error)

    def committed(self) -> dict[tuple[str, int], int]:
        """What the group has committed, whoever did: `{(topic, partition): offset}`."""
        answer = _Answer()
        self._ask_committed(answer.set)
        return committed_offsets(answer.wait(self._check_running))

    # Ends ---

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Closes, from any thread. Again: does nothing.

        In a group it commits what is done and leaves, which may take up to `timeout` seconds where the coordinator
        cannot be reached. It counts as a call, so that what was handed out before is done; but not while an exception
        is being handled, out of another thread, or within the loop of an iteration.
        """
        check_timeout(timeout)
        if self._refusal is None and not self._closing:
            self._closing = True
            try:
                self._leave(timeout)
            finally:
                self._stop()

    def _leave(self, timeout: float) -> None:
        custody = self._custody
        if custody is None or not self._connection.running:
            return
        left = threading.Event()
        try:
            if self._owner == self._caller() and self._busy is None:
                if sys.exc_info()[0] is None and not self._looping:
                    self._finish_hand(custody)
                revoked = self._callbacks["revoked"]
                places = sorted({*custody.owned, *custody.leaving})
                if revoked is not None and places:
                    revoked(places)
        finally:
            if self._start_leaving(left.set, timeout):
                wait_event(left, timeout)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()


class _Answer:
    """What the client's thread answers a caller that waits."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._value: Any = None

    def set(self, value: Any) -> None:
        self._value = value
        self._event.set()

    def wait(self, check: Callable[[], None]) -> Any:
        """The answer, which comes in time for as long as the thread runs; `check` raises when it does not."""
        while not wait_event(self._event, CHECK_EVERY):
            check()
        return self._value


CHECK_EVERY = 0.25
"""Seconds after which it is looked whether the client's thread, which owes an answer, still runs."""
