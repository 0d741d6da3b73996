"""What the sync and the asyncio consumer share: their options, and handing over what is ready. Everything but waiting.

Owns the batch in hand. Decodes in the application's thread; what to fetch is decided in `consuming`, what is in whose
hands in `custody`, and the sockets belong to `connection`.
"""

from __future__ import annotations

import random
import secrets
import threading
import weakref
from collections.abc import Iterable, Mapping
from itertools import islice
from time import monotonic
from typing import NamedTuple, get_args

from zbroker.client.buffer import ConsumerSettings, OutOfRange, Ready
from zbroker.client.connection import Connection
from zbroker.client.consuming import ConsumerCore
from zbroker.client.custody import Custody
from zbroker.client.decoding import Decoder
from zbroker.client.delivery import copied
from zbroker.client.driving import ConsumerMachine
from zbroker.client.exchange import Exchange
from zbroker.client.grouping import GroupCore
from zbroker.client.guard import option
from zbroker.client.membership import Assignor, GroupSettings
from zbroker.client.metadata import Cluster
from zbroker.client.partaking import GroupPart, OnPartitions
from zbroker.client.places import StartOption, chosen_partitions, parse_starts
from zbroker.client.producer import servers_of
from zbroker.client.records import Record
from zbroker.client.serializers import Deserializer
from zbroker.errors import (
    Diverged,
    InvalidRequest,
    SerializationError,
    ZBrokerError,
)

BUFFER_BYTES = 32 << 20
FETCH_BYTES = 1 << 20
MAX_RECORDS = 1000
CLOSE_TIMEOUT = 3.0
"""Seconds that closing may take to commit and to leave a group."""


class Taken(NamedTuple):
    """What left `ready`, and where its partition was before."""

    item: Ready
    position: int | None


class ConsumerBase(GroupPart):
    """See above; `Consumer` describes the arguments."""

    def __init__(
        self,
        servers: str | Iterable[str] = "localhost:5550",
        *topics: str,
        group: str | None = None,
        instance: str | None = None,
        start: StartOption | Mapping[tuple[str, int], StartOption] = "latest",
        partitions: Iterable[int | tuple[str, int]] | None = None,
        on_out_of_range: OutOfRange | None = None,
        until_end: bool = False,
        auto_commit: bool = True,
        commit_interval: float = 1.0,
        session_timeout: float = 10.0,
        max_poll_interval: float = 300.0,
        assignor: Assignor = "sticky",
        rack: str | None = None,
        on_assigned: OnPartitions | None = None,
        on_revoked: OnPartitions | None = None,
        on_lost: OnPartitions | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        fetch_bytes: int = FETCH_BYTES,
        request_timeout: float = 10.0,
        deserializer: Deserializer = None,
        key_deserializer: Deserializer = None,
        sub_rcvhwm: int = 1000,
        client_id: str = "zbroker-consumer",
    ) -> None:
        addresses = servers_of(servers)
        _check_topics(topics)
        option(
            on_out_of_range in (None, "raise", "earliest", "latest"),
            f"on_out_of_range is raise, earliest or latest, not {on_out_of_range!r}",
        )
        for name, size in (("buffer_bytes", buffer_bytes), ("fetch_bytes", fetch_bytes)):
            option(isinstance(size, int) and size > 0, f"{name} is 1 or more, not {size!r}")
        for name, seconds in (
            ("request_timeout", request_timeout), ("commit_interval", commit_interval),
            ("session_timeout", session_timeout), ("max_poll_interval", max_poll_interval),
        ):  # fmt: skip
            option(
                isinstance(seconds, int | float) and seconds > 0,
                f"{name} is more than 0 seconds, not {seconds!r}",
            )
        option(
            isinstance(sub_rcvhwm, int) and sub_rcvhwm >= 0, "sub_rcvhwm is a number of messages"
        )
        names = tuple(dict.fromkeys(topics))
        member: GroupSettings | None = None
        if group is not None:
            option(partitions is None, "in a group the partitions are assigned: leave them out")
            member = GroupSettings(
                group=group, topics=names, instance=instance, assignor=assignor, rack=rack,
                session_timeout=session_timeout, max_poll_interval=max_poll_interval,
                auto_commit=auto_commit, commit_interval=commit_interval, client=client_id[:255],
            )  # fmt: skip
            _check_group(member)
        else:
            for name, given in (
                ("instance", instance), ("rack", rack), ("on_assigned", on_assigned),
                ("on_revoked", on_revoked), ("on_lost", on_lost),
            ):  # fmt: skip
                option(given is None, f"{name} is for consumers in a group, and `group` is missing")
        everywhere, starts = parse_starts(start)
        if on_out_of_range is None:
            follows = everywhere if everywhere in ("earliest", "latest") else "raise"
            # In a group it means that records were deleted unread: what there is left is not to be skipped, too.
            on_out_of_range = "earliest" if group is not None else follows
        assert on_out_of_range is not None
        settings = ConsumerSettings(
            topics=names,
            partitions=chosen_partitions(partitions, topics),
            start=everywhere,
            starts=starts,
            on_out_of_range=on_out_of_range,
            fetch_bytes=fetch_bytes,
            buffer_bytes=buffer_bytes,
            request_timeout=request_timeout,
            until_end=until_end,
            grouped=group is not None,
        )
        super().__init__()
        chance = random.Random().random
        exchange = Exchange()
        self._cluster = Cluster(addresses, exchange, chance)
        self._core = ConsumerCore(settings, exchange, self._cluster, chance)
        self._custody = self._group = None
        if member is not None:
            self._custody = Custody(
                hears_assigned=on_assigned is not None, hears_revoked=on_revoked is not None
            )
            self._group = GroupCore(
                member, self._core, self._custody, self._cluster, chance, lambda: secrets.token_hex(16)
            )  # fmt: skip
        self._machine = ConsumerMachine(self._core, self._cluster, exchange, self._group)
        self._connection = connection = Connection(self._machine, client_id, sub_rcvhwm=sub_rcvhwm)
        self._finalizer = weakref.finalize(self, connection.stop_soon)
        self._finalizer.atexit = False
        self._until_end = until_end
        self._buffer_bytes = buffer_bytes
        self._request_timeout = request_timeout
        self._decoder = Decoder(deserializer, key_deserializer)
        self._callbacks = {"assigned": on_assigned, "revoked": on_revoked, "lost": on_lost}
        self._woken = False
        self._told = False
        """Whether an error was raised, so that the next call has the core try again."""
        self._prepare()

    def _prepare(self) -> None:
        """What a face needs for its waiting."""

    # Handing over ---

    def _begin(self) -> None:
        """At the start of every call that hands records over."""
        self._check_open()
        if self._calling_back:
            raise InvalidRequest("a callback of the consumer's cannot poll it")
        self._connection.start()
        if not self._core.begun:
            self._connection.post(self._core.begin)
        if self._told:
            self._told = False
            self._connection.post(self._core.go_on)
        if self._custody is not None and self._group is not None:
            self._finish_hand(self._custody)
            if not self._joined:
                self._joined = True
                self._connection.post(self._group.join)

    def _take(self, most: int) -> list[Record]:
        """Up to `most` records of what is there, without waiting. Interrupted (Ctrl-C), it leaves all of it there."""
        if self._held_back():
            return []
        current, records = self._current, self._records
        left = self._cursor.__length_hint__()  # type: ignore[attr-defined]
        taken: list[Taken] = []
        found: list[Record] = []
        try:
            found += islice(self._cursor, most)
            while len(found) < most and self._load(taken, errors=not found):
                found += islice(self._cursor, most - len(found))
        except ZBrokerError:
            if not found:
                raise
            # Raised again by the next call: what caused it is still in front.
        except BaseException:
            self._put_back(taken)
            if current is not None and left:
                self._set_current(current, records[-left:])
                self._touched.discard(current.place)
            raise
        return found

    def _put_back(self, taken: list[Taken]) -> None:
        """Nothing of this was handed over: it is ready as before."""
        ready = self._core.ready
        for item, position in reversed(taken):
            if ready and ready[0] is item:
                continue  # it had not left
            ready.appendleft(item)
            if item.piece is not None:
                self._core.buffer.bytes_out -= item.piece.header.size
            if position is None:
                self._positions.pop(item.place, None)
            else:
                self._positions[item.place] = position
            self._touched.discard(item.place)
        if taken:
            self._set_current(None, [])

    def _set_current(self, item: Ready | None, records: list[Record]) -> None:
        self._records = records
        self._cursor = iter(records)
        self._current = item

    def _load(self, taken: list[Taken], *, errors: bool = True) -> bool:
        """Makes the next batch the current one; False when nothing is ready. Raises what stands in front.

        Args:
            taken: takes down what leaves `ready`.
            errors: whether an error that stands in front may be raised; else it stays there.
        """
        self._finish_current()
        ready = self._core.ready
        while ready:
            if self._held_back():
                return False
            item = ready[0]
            place = item.place
            if not self._counts(item):
                if not self._held_back():
                    self._drop(ready.popleft())
                continue
            if item.error is not None:
                if not errors:
                    return False
                ready.popleft()
                self._positions[place] = item.position
                self._tell(item.error)
            records = [] if item.piece is None else self._decode(item)
            taken.append(Taken(item, self._positions.get(place)))
            ready.popleft()
            self._drop(item)
            if item.piece is not None:
                self._epochs[place] = item.piece.header.leader_epoch
            if records:
                self._set_current(item, records)
                return True
            self._positions[place] = item.position
            self._touched.add(place)
        return False

    def _counts(self, item: Ready) -> bool:
        """Whether what is ready is not from before a `seek`, and not of a partition that is another member's."""
        place, custody = item.place, self._custody
        if custody is None or place.partition < 0:
            return item.generation >= self._generations.get(place, 0)
        if not custody.take(place, item.generation, monotonic(), hand=item.piece is not None):
            return False
        return self._sync(place) and item.generation >= self._generations.get(place, 0)

    def _decode(self, item: Ready) -> list[Record]:
        assert item.piece is not None
        try:
            records, rest = self._decoder.decode(item)
        except ZBrokerError as error:
            first = error.details["first"] if isinstance(error, SerializationError) else None
            self._positions[item.place] = item.piece.first if first is None else first
            self._bad = error
            raise
        if rest is not None:
            assert rest.piece is not None
            item.position = rest.piece.first
            self._core.buffer.bytes_out -= rest.piece.header.size
            self._core.ready.insert(1, rest)
        return records

    def _tell(self, error: ZBrokerError) -> None:
        self._bad = None if isinstance(error, Diverged) else error  # its offsets can be read
        self._told = True
        raise copied(error)

    def _finish_current(self) -> None:
        if self._current is not None:
            self._positions[self._current.place] = self._current.position
            self._touched.add(self._current.place)
            self._current = None

    def _drop(self, item: Ready) -> None:
        """Gives the room of a batch back."""
        if item.piece is not None:
            buffer = self._core.buffer
            buffer.bytes_out += item.piece.header.size
            if buffer.stalled and buffer.bytes_in - buffer.bytes_out <= self._buffer_bytes // 2:
                buffer.stalled = False
                self._connection.wake()

    def _has_batch(self) -> bool:
        """Whether there is a record to be handed over now, of the batch in hand or of the next."""
        if self._held_back():
            return False
        return bool(self._cursor.__length_hint__()) or self._load([])  # type: ignore[attr-defined]

    def _exit(self) -> None:
        """At the end of every call that hands records over."""
        if self._custody is not None:
            self._custody.idle_since = monotonic()

    # Ends ---

    def wakeup(self) -> None:
        """From any thread: a `poll` that waits returns with what it has, an iteration that waits ends."""
        self._woken = True
        self._machine.signal()

    def _check_running(self) -> None:
        failure = self._machine.failure
        if failure is not None:
            self._check_open()
            raise copied(failure)

    def _stop(self) -> None:
        if self._refusal is not None:
            return
        self._refusal = "the consumer was closed"
        self._forget()
        self._finalizer.detach()
        self._connection.stop()
        self._machine.signal()

    def _at_exit(self) -> None:
        left = threading.Event()
        if self._start_leaving(left.set, EXIT_TIMEOUT):
            left.wait(EXIT_TIMEOUT)
        self._connection.stop_soon()

    def __repr__(self) -> str:
        topics = ", ".join(self._core.settings.topics)
        group = f" in {self._group.settings.group}" if self._group is not None else ""
        return f"<{type(self).__name__} of {topics}{group}{' closed' if self._refusal else ''}>"


EXIT_TIMEOUT = 1.0
"""Seconds that leaving a group may take when the interpreter exits."""


def _check_topics(topics: tuple[str, ...]) -> None:
    option(bool(topics), "a consumer reads at least one topic: Consumer(servers, topic, …)")
    for topic in topics:
        option(
            isinstance(topic, str) and 0 < len(topic) <= 249,
            f"a topic is a name, or a pattern such as sensors.*, not {topic!r}",
        )


def _check_group(member: GroupSettings) -> None:
    for name, text, most in (
        ("group", member.group, 255), ("instance", member.instance, 255), ("rack", member.rack, 255)
    ):  # fmt: skip
        option(
            (name != "group" and text is None) or (isinstance(text, str) and 0 < len(text) <= most),
            f"{name} is a name of 1 to {most} characters, not {text!r}",
        )
    option(
        member.assignor in get_args(Assignor),
        f"assignor is {' or '.join(get_args(Assignor))}, not {member.assignor!r}",
    )
