"""One partition being read: from where, by fetch or by push, and what becomes of it when something is wrong.

Pure: it takes metadata, replies and pushes with the time, and leaves requests in the `Exchange` and batches in the
`Buffer`. Never decides which partitions are read, and never decodes a record.

========= ================================= ==========================================================
state     means                             goes on to
========= ================================= ==========================================================
starting  where to begin is asked for       fetching
fetching  batches are fetched, the next     live, once it is at the head and its subscription is heard
          when one has come                 of
live      batches are pushed; a gap or a    fetching, when the pushes fall silent, the leader changes
          dropped tail is fetched           or the buffer is full
stopped   paused, at its end, or an error   starting or fetching, by `seek`, `begin_anew` and
          waits for the application         `resume`
========= ================================= ==========================================================

A partition gets another leader: what is under way to the one before is abandoned, and the new one is asked and
subscribed to at once. Its first answer to a fetch says whether its log still has the record before the position. Where
it has not (an unclean election), the position goes back to where both histories part, and the application is told which
offsets changed, once, before anything of the new history.

Back-pressure: while `buffer_bytes` wait for the application nothing is fetched, and what is pushed is dropped and the
subscription ended; it is fetched later.
"""

from __future__ import annotations

import logging

from zbroker.client.exchange import Body, Call, Outcome, moving
from zbroker.client.metadata import Leader
from zbroker.client.placing import Placed
from zbroker.errors import (
    CorruptBatch,
    DataDamaged,
    Diverged,
    NotLeader,
    OffsetOutOfRange,
    StaleEpoch,
    ZBrokerError,
)
from zbroker.protocol import messages
from zbroker.units import Address

logger = logging.getLogger("zbroker.client")

FETCH_WAIT = 0.5
"""Seconds that a fetch at the head waits for a record: nothing is pushed yet, or a new leader does not serve yet what
the one before had committed."""
PUSH_SILENCE = 2.0
"""Seconds without a push or a beacon after which a live reader fetches again."""
CORRUPT_PATIENCE = 3
"""Times that a corrupt chunk is fetched again before the application is told."""


class Reader(Placed):
    """One partition being read."""

    __slots__ = ()

    def advance(self, now: float) -> float | None:
        """Does what is due; answers when it wants to be called again, though nothing arrives."""
        if self.state == "stopped":
            return None
        leader = self._shared.cluster.leader(self.place.topic, self.place.partition)
        if leader is None or leader.address is None:
            self._shared.cluster.chase(now)
            self._unsubscribe()
            return None
        if leader is not self.leader:
            self._leader_changed(leader)
        if self.call is not None:
            return None
        if now < self.retry_at and not self._has_learned(leader):
            if self.last_error is not None and moving(self.last_error):
                self._shared.cluster.chase(now)
            return self.retry_at
        if self.state == "starting":
            self._ask_start(leader.address, now)
            return None
        if self.state == "live":
            silent_at = (self.heard_at or now) + PUSH_SILENCE
            if now >= silent_at:
                self.state = "fetching"
            elif self.splice.trusted and not self.splice.behind:
                return silent_at
        if self._shared.buffer.full():
            self._shared.buffer.stalled = True
            return None
        self._fetch(leader.address, now)
        return None

    def on_push(
        self, push: messages.Push, body: Body, now: float, sender: Address | None = None
    ) -> None:
        """A batch or a beacon of the partition, from whoever published it."""
        splice = self.splice
        if self.state in ("starting", "stopped") or splice.is_stale(push.epoch):
            return
        if sender is None or sender == self.subscribed:
            self.heard_at = now
        if body is None:
            splice.on_beacon(push)
        elif self._shared.buffer.full() or (self.end is not None and splice.position >= self.end):
            splice.on_beacon(push)
            self._lag_behind()
        else:
            try:
                self._hand_over(splice.on_push(push, body))
            except ZBrokerError as error:
                logger.warning(
                    "a pushed batch of %s is no good and will be fetched: %s", self.place, error
                )
        if self.state == "fetching" and self.heard_at is not None:
            self._go_live()

    def _leader_changed(self, leader: Leader) -> None:
        """Whoever leads now is asked at once."""
        before, self.leader = self.leader, leader
        if before is None or (before.address, before.epoch) == (leader.address, leader.epoch):
            return
        if leader.address != before.address:
            self._drop_call()
            self._unsubscribe()
        self.retry_at = 0.0
        self.retries.reset()

    def _has_learned(self, leader: Leader) -> bool:
        """Whether the leader has announced newer metadata since it refused: it may know now that it leads."""
        said = self._shared.cluster.said.get(leader.address, -1)
        if said <= self.said or self.last_error is None:
            return False
        self.said = said
        self.retry_at = 0.0
        self.retries.reset()
        return True

    def _ask_start(self, address: Address, now: float) -> None:
        start = self.start
        request = messages.Offsets(
            topic=self.place.topic, topic_id=self.topic_id, partition=self.place.partition, at="latest"
        )  # fmt: skip
        if isinstance(start, int):
            if not self._shared.settings.until_end:
                self._place(start, self.epoch)
                self._fetch(address, now)
                return
        elif isinstance(start, tuple):
            request.at, request.time = "time", start[1]
        else:
            request.at = start
        self.call = self._shared.exchange.request(
            address, request, lambda call, outcome, _body, at: self._on_start(call, outcome, at),
            now=now, timeout=self._shared.settings.request_timeout,
        )  # fmt: skip

    def _on_start(self, call: Call, outcome: Outcome, now: float) -> None:
        if self.call is not call:
            return
        self.call = None
        if not isinstance(outcome, messages.OffsetsReply):
            self._failed(outcome, now)
            return
        if self.splice.is_stale(outcome.leader_epoch):
            self._failed(StaleEpoch(f"{call.address} has been succeeded as the leader"), now)
            return
        self._answered()
        if self._shared.settings.until_end and self.end is None:
            self.end = outcome.high_watermark
        if isinstance(self.start, int):
            self._place(self.start, self.epoch)
        else:
            self._place(outcome.offset, outcome.epoch)
            self._shared.started(self)
        self.splice.on_ends(outcome.leader_epoch, outcome.high_watermark, outcome.log_start)
        self._emit(self.splice.position)
        if not isinstance(self.start, int) or self.start <= outcome.high_watermark:
            self._check_end()  # else a fetch is to say what is wrong with the offset

    def _fetch(self, address: Address, now: float) -> None:
        splice = self.splice
        if not splice.behind and self.subscribed is None:
            self._subscribe(address)
        wait = FETCH_WAIT if splice.trusted else 0.0
        request = messages.Fetch(
            topic=self.place.topic, topic_id=self.topic_id, partition=self.place.partition,
            offset=max(splice.position, 0), epoch=splice.epoch, max_bytes=self._shared.settings.fetch_bytes,
            wait=int(wait * 1000),
        )  # fmt: skip
        self.call = self._shared.exchange.request(
            address, request, self._on_fetch,
            now=now, timeout=self._shared.settings.request_timeout + wait,
        )  # fmt: skip

    def _on_fetch(self, call: Call, outcome: Outcome, body: Body, now: float) -> None:
        if self.call is not call:
            return
        self.call = None
        if not isinstance(outcome, messages.FetchReply):
            self._failed(outcome, now)
            return
        splice = self.splice
        if splice.is_stale(outcome.epoch):
            self._failed(StaleEpoch(f"{call.address} has been succeeded as the leader"), now)
            return
        if self.rewound is not None:
            self._tell_rewound()
            return
        try:
            pieces = splice.on_fetch(outcome, body if body is not None else b"")
        except ZBrokerError as error:
            self._corrupt(error, now)
            return
        self.corrupt = 0
        self._answered()
        self._hand_over(pieces)
        if self.state == "stopped":
            return
        span = splice.position - outcome.base
        if (
            splice.head - splice.position <= span
            and self.subscribed is None
            and not self._shared.buffer.full()
        ):
            self._subscribe(call.address)
        if self.heard_at is not None:
            self._go_live()

    def _answered(self) -> None:
        if self.last_error is not None:
            self.last_error = None
            self.retries.reset()

    # When something is wrong ---

    def _failed(self, outcome: Outcome, now: float) -> None:
        error = (
            outcome
            if isinstance(outcome, ZBrokerError)
            else ZBrokerError(f"unexpected answer: {outcome!r}")
        )
        if isinstance(error, OffsetOutOfRange):
            self._out_of_range(error)
        elif isinstance(error, Diverged):
            epoch, end = error.details.get("epoch"), error.details.get("end")
            if isinstance(epoch, int) and isinstance(end, int):
                self._rewind(epoch, end)
            else:  # it does not say: nothing of the last epoch is left, perhaps
                self._rewind(self.splice.epoch - 1, self.splice.position - 1)
        elif error.retriable:
            self.last_error = error
            self.retry_at = now + self.retries.after(error)
            self.heard_at = None
            if self.state == "live":
                self.state = "fetching"
            if self.leader is not None:
                self.said = self._shared.cluster.said.get(self.leader.address, -1)
            if isinstance(error, NotLeader):
                self._shared.cluster.on_not_leader(*self.place, error.details, now)
            if moving(error):
                self._shared.cluster.chase(now)
        else:
            self._stop_with(error)

    def _out_of_range(self, error: OffsetOutOfRange) -> None:
        policy = self._shared.settings.on_out_of_range
        start, end = error.details.get("start"), error.details.get("end")
        place, position = self.place, self.splice.position
        if self.splice.epoch >= 0 and isinstance(end, int) and end < position:
            # What was read is beyond the log's end: it is another log, not one that retention has shortened.
            self._rewind(self.splice.epoch, end)
            return
        if policy == "raise" or self.moved:
            self.moved = False
            error.details.update(topic=place.topic, partition=place.partition, offset=position)
            self._stop_with(error)
            return
        logger.warning(
            "%s/%d: offset %d is no longer in the log (%s to %s); going on at the %s",
            place.topic, place.partition, position, start, end, policy,
        )  # fmt: skip
        self.start = policy
        self.state = "starting"

    def _rewind(self, epoch: int, end: int) -> None:
        """The log is another one than was read: goes back until both agree, and then tells the application."""
        splice = self.splice
        if self.rewound is None:
            self.rewound = splice.position
        splice.rewind(epoch, max(0, min(end, splice.position)))
        if self.state == "live":
            self.state = "fetching"

    def _tell_rewound(self) -> None:
        place, position, before = self.place, self.splice.position, self.rewound
        self.rewound = None
        assert before is not None
        if before <= position:
            return
        self.emitted = position
        if self._shared.settings.until_end:
            self.end = None  # it may be beyond what there is now
            self.start, self.epoch, self.state = position, self.splice.epoch, "starting"
        self._stop_with(Diverged(
            f"the log of {place.topic}/{place.partition} was rewritten: what is at offsets {position} to {before - 1} "
            "is no longer what was read there; the next call goes on with what is there now",
            topic=place.topic, partition=place.partition, first=position, next=before, epoch=self.splice.epoch,
        ))  # fmt: skip

    def _corrupt(self, error: ZBrokerError, now: float) -> None:
        self.corrupt += 1
        if isinstance(error, CorruptBatch) and self.corrupt < CORRUPT_PATIENCE:
            self.retry_at = now + self.retries.after(error)
            return
        self.corrupt = 0
        first = error.details.get("first", self.splice.position)
        self._stop_with(DataDamaged(
            str(error), topic=self.place.topic, partition=self.place.partition,
            first=first, next=error.details.get("next", first + 1),
        ))  # fmt: skip
