"""Where a reader is in its partition, and what it hands over: the part of `reading` that asks nobody.

Owns the position, the subscription, and the state; see the table in `reading`. Pure.
"""

from __future__ import annotations

from typing import Literal

from zbroker.client.buffer import Ready, Shared, Start
from zbroker.client.exchange import Call, Retries, Subscription
from zbroker.client.metadata import Leader
from zbroker.client.records import TopicPartition
from zbroker.client.splice import Piece, Splice
from zbroker.errors import (
    TopicChanged,
    ZBrokerError,
)
from zbroker.protocol.frames import subject
from zbroker.units import Address


class Placed:
    """A partition, the position in it, and whether it is subscribed to."""

    __slots__ = (
        "_shared", "call", "corrupt", "emitted", "end", "epoch", "generation", "heard_at", "last_error", "leader",
        "moved", "place", "resume", "retries", "retry_at", "rewound", "said", "splice", "start", "state", "subscribed",
        "topic_id",
    )  # fmt: skip

    def __init__(
        self,
        shared: Shared,
        place: TopicPartition,
        topic_id: str,
        start: Start,
        *,
        epoch: int = -1,
        generation: int = 0,
    ) -> None:
        self._shared = shared
        self.place = place
        self.topic_id = topic_id
        self.start: Start = start
        self.epoch = epoch
        """Leader epoch of the record before `start`, where that is an offset and its epoch is known."""
        self.state: Literal["starting", "fetching", "live", "stopped"] = "starting"
        self.splice = Splice(0)
        self.generation = generation
        """How often the application has set the position: what was on its way before is dropped."""
        self.end: int | None = None
        """Where to stop, with `until_end`."""
        self.call: Call | None = None
        self.leader: Leader | None = None
        """Whom the request under way went to."""
        self.subscribed: Address | None = None
        self.heard_at: float | None = None
        self.retry_at = 0.0
        self.retries = Retries(shared.random)
        self.said = -1
        """What the leader had announced when it last said to try again."""
        self.last_error: ZBrokerError | None = None
        """Why the last request is to be repeated."""
        self.corrupt = 0
        self.rewound: int | None = None
        """The position before the log was found to be another one; the application is to be told."""
        self.emitted = -1
        """The position that the application will know of once it has taken what is ready."""
        self.resume: Literal["starting", "fetching"] | None = None
        """How a stopped reader goes on at the application's next call."""
        self.moved = False
        """Whether this start is the application's own (seek), after which out of range is always an error."""

    def seek(self, start: Start, epoch: int, generation: int) -> None:
        """The application set a position."""
        self._drop_call()
        self.generation = generation
        self.start = start
        self.epoch = -1
        self.moved = True
        self.resume = None
        self.retry_at = 0.0
        self.corrupt = 0
        if isinstance(start, int):
            self._place(start, epoch)
            if self._shared.settings.until_end and self.end is None:
                self.state = "starting"
        else:
            self.state = "starting"

    def pause(self, generation: int) -> None:
        """Nothing more until it is sought, or begins anew."""
        self.close()
        self.generation = generation
        self.state = "stopped"
        self.resume = None

    def begin_anew(self, generation: int) -> None:
        """The application has had nothing yet: it gets all from `start` on."""
        self._drop_call()
        self.generation = generation
        self.state = "starting"
        self.resume = None
        self.retry_at = 0.0
        self.corrupt = 0
        if isinstance(self.start, int):
            self._emit(self.start)

    def close(self) -> None:
        """Nothing more at all."""
        self._drop_call()
        self._unsubscribe()

    def suspend(self) -> None:
        """The topic is not there: nothing until the application's next call."""
        self.close()
        if self.state != "stopped":
            self.resume = "starting" if self.state == "starting" else "fetching"
        self.state = "stopped"

    def go_on(self) -> None:
        """The application was told of an error and calls again."""
        if self.resume is not None:
            self.state, self.resume = self.resume, None

    def made_again(self, topic_id: str) -> None:
        """The topic is another one under the same name; its records are read from the first on."""
        self.close()
        self.topic_id = topic_id
        self.splice = Splice(0)
        self.rewound = None
        self.start = "earliest"
        self.end = None
        self.state = "starting"
        self.emitted = -1
        topic = self.place.topic
        self._stop_with(TopicChanged(
            f"topic {topic!r} was deleted and made again; the next call reads the new one from its start",
            topic=topic, partition=self.place.partition,
        ))  # fmt: skip

    # Position ---

    def _place(self, position: int, epoch: int) -> None:
        before = self.splice
        self.splice = Splice(position, epoch)
        self.splice.on_ends(before.leader_epoch, before.head, before.log_start)
        self.rewound = None
        self.start, self.epoch = position, epoch
        self.state = "fetching"
        self.emitted = position

    def _emit(self, position: int) -> None:
        """Tells the application of a position that moved without a record."""
        self.emitted = position
        self._shared.buffer.ready.append(Ready(self.place, self.generation, position))

    def _hand_over(self, pieces: list[Piece]) -> None:
        end = self.end
        for piece in pieces:
            if end is not None and piece.first >= end:
                break
            header = piece.header
            if header.is_control:
                continue
            self.emitted = header.next_offset if end is None else min(header.next_offset, end)
            self._shared.buffer.bytes_in += header.size
            self._shared.buffer.ready.append(
                Ready(self.place, self.generation, self.emitted, piece)
            )
        position = self.splice.position if end is None else min(self.splice.position, end)
        if position > self.emitted:
            self._emit(position)
        if end is not None:
            self._check_end()

    def _check_end(self) -> None:
        if self.end is not None and self.splice.position >= self.end:
            self._drop_call()
            self._unsubscribe()
            self.state = "stopped"
            self._shared.at_end()

    def _stop_with(self, error: ZBrokerError) -> None:
        """The application is told, after all that came before; its next call goes on."""
        error.details.setdefault("topic", self.place.topic)
        error.details.setdefault("partition", self.place.partition)
        self._unsubscribe()
        self.resume = "starting" if self.state == "starting" else "fetching"
        self.state = "stopped"
        self._shared.buffer.ready.append(
            Ready(self.place, self.generation, self.splice.position, error=error)
        )

    # What is under way ---

    def _subscribe(self, address: Address) -> None:
        self.subscribed = address
        self.heard_at = None
        self._shared.exchange.effects.append(
            Subscription(address, subject(self.place.topic, self.place.partition), "add")
        )

    def _unsubscribe(self) -> None:
        if self.subscribed is not None:
            self._shared.exchange.effects.append(
                Subscription(
                    self.subscribed, subject(self.place.topic, self.place.partition), "drop"
                )
            )
        self.subscribed = None
        self.heard_at = None
        self.splice.drop_held()
        if self.state == "live":
            self.state = "fetching"

    def _lag_behind(self) -> None:
        """The application is slower than the pushes: they would only be dropped."""
        self._unsubscribe()
        self._shared.buffer.stalled = True

    def _go_live(self) -> None:
        splice = self.splice
        if self.subscribed is not None and splice.trusted and not splice.behind:
            self.state = "live"

    def _drop_call(self) -> None:
        if self.call is not None:
            self._shared.exchange.abandon(self.call)
            self.call = None
