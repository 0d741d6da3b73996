"""The leader of one replicated log: sends batches to its followers, hears how far they are, moves the high watermark.

Owns one session with each follower, the batches that are not committed yet, and the high watermark with the rule by
which it moves. Never appends by itself (its owner does, then calls `appended`), never reads a clock, and never
decides who leads or who is in sync: it proposes changes of the ISR and is told what became of them.

A follower's session is (leader epoch, both incarnations, number). It begins with a probe, nothing is sent until the
follower's log is known to end where it agrees with the leader's, and whatever goes wrong ends it: the next one begins
with a probe at the place where this one's acknowledgements stopped.

========== =============================== ========== =================================================================
state      on                              next       effect
========== =============================== ========== =================================================================
probing    `ok`                            streaming  sends what follows
probing    `behind`, `diverged`            probing    probes where the two epoch tables agree, or at the log start
probing    no answer for `RESEND_MS`       probing    probes again, in a new session
streaming  `ok`                            streaming  sends on, within the follower's limit
streaming  `gap`                           probing    a new session, at the follower's end
streaming  `gap` again at once             waiting    the same after `RETRY_MS`
streaming  no answer for `RESEND_MS`       probing    a new session, at what was acknowledged
any        `not_ready`                     waiting    probes again after `RETRY_MS`, or when the metadata grew
waiting    `ready`                         probing    the follower knows of the appointment now
any        `full`                          waiting    probes again after `FULL_MS`
any        `rebuild`                       waiting    out of the ISR with it; then a probe that allows the rebuild
any        `stale`                         any        `deposed` is set: the owner waits for the metadata that say so
any        a new incarnation               probing    a new session, from the start
any        the logs agree before the       waiting    `lacks` is set: the owner sends a snapshot, then calls `resume`
           leader's begins (metadata only)
========== =============================== ========== =================================================================

The high watermark moves to the offset that every member of ISR and pending ISR has (or a majority of the voters), as
the topic's `fsync` counts; not before each of them has acknowledged the beginning of this epoch, not while the ISR is
smaller than `min_insync`, and never back. A voted leader exposes it only beyond the beginning of its own epoch, so
that nothing of an older epoch is committed by counting (Raft, section 5.4.2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from itertools import islice

import msgspec

from zbroker.errors import ZBrokerError
from zbroker.log.events import ReadDone
from zbroker.log.log import Log
from zbroker.protocol.batch import Buffer
from zbroker.protocol.peers import METADATA, Append, Appended
from zbroker.replication.commit import in_sync_offset, is_majority, majority_offset
from zbroker.replication.ports import LinkBudget, SendAppend
from zbroker.replication.progress import Progress

RESEND_MS = 300
"""How long a follower may leave something unanswered before its session is begun anew."""
RETRY_MS = 100
FULL_MS = 1000
REMIND_MS = 100
"""How long a follower that is idle may not know the newest high watermark."""
APPEND_MAX = 1 << 20
"""Bytes that one append carries at most, unless a batch alone is larger."""
BATCHES_MAX = 64
"""Batches that one append carries at most, each in a frame of its own."""
CATCH_UP_READ = 512 << 10
"""Bytes that are read at a time for a follower that is behind.

Two such reads fit into a link's budget: one is written and flushed while the next is on its way. With one at a time
catching up is a third slower, and live records wait a fifth less for the disk that both share (`bench.catch_up`).
"""


class LeaderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader goes by.

    Attributes:
        node: the leader's own name.
        topic_id, partition: what it leads.
        quorum: a majority of the voters commits, not the in-sync replicas.
        flushed: what counts is flushed, not only written.
        min_insync: how many in-sync replicas there must be for the high watermark to move.
        lag_max: ms that an in-sync replica may be behind before it leaves the ISR.
    """

    node: str
    topic_id: str = METADATA
    partition: int = 0
    quorum: bool = False
    flushed: bool = True
    min_insync: int = 1
    lag_max: int = 3000


class CatchUp(msgspec.Struct, frozen=True):
    """The token of a read for a follower that is behind."""

    node: str
    epoch: int
    session: int


class Leader:
    """One log's leader. See the module for what it does with whom.

    Attributes:
        epoch: its leader epoch. `epoch_start`: the offset at which that began.
        high_watermark: all below it is committed; -1 until it is exposed.
        isr: the in-sync replicas as committed, or the voters of the metadata partition.
        pending: those whose joining of the ISR was proposed and counts already.
        proposed: the ISR that is proposed, None where none is.
        sent_beyond: the offset below which something was sent to a follower in this epoch.
        deposed: an epoch that is newer than this one, of which a follower knew; -1 otherwise.
    """

    def __init__(
        self,
        log: Log,
        settings: LeaderSettings,
        *,
        epoch: int,
        isr: Collection[str],
        metadata: int,
        known: int,
        send: SendAppend,
        budgets: Callable[[str], LinkBudget],
        now: int,
    ) -> None:
        """A leader whose epoch has begun in its own log, on disk.

        Args:
            isr: in-sync replicas, the leader among them; the voters of the metadata partition.
            metadata: offset of the record that appointed it.
            known: the high watermark as it was known here before.
            budgets: the budget of catch-up for a node.
        """
        assert log.last_epoch == epoch, (log.last_epoch, epoch)
        self.log = log
        self.settings = settings
        self.epoch = epoch
        self.epoch_start = log.start_of_epoch(epoch)
        self.high_watermark = -1
        self.isr: list[str] = sorted(isr)
        self.pending: set[str] = set()
        self.proposed: list[str] | None = None
        self.followers: dict[str, Progress] = {}
        self.uncommitted: deque[tuple[int, int, Buffer]] = deque()
        """Batches (base, next offset, bytes) that are not committed; what live followers are sent from."""
        self.sent_beyond = 0
        self.deposed = -1
        self._metadata = metadata
        self._known = max(known, log.start_offset)
        self._send = send
        self._budgets = budgets
        self._now = now
        self._stamp = 0
        self._sessions: dict[str, int] = {}

    # Who follows ---

    def set_followers(self, replicas: Mapping[str, int], now: int) -> None:
        """Who keeps a copy, with the incarnation of each that is registered; those who are new are probed."""
        self._now = now
        for node in [node for node in self.followers if node not in replicas]:
            gone = self.followers.pop(node)
            self._release(node, gone)
            self._sessions[node] = (
                gone.session
            )  # it may come back in the same start, and has followed that far
        for node, incarnation in sorted(replicas.items()):
            known = self.followers.get(node)
            if known is None or known.incarnation != incarnation:
                if known is not None:
                    self._release(node, known)
                session = self._sessions.get(node, 0) if known is None else known.session
                self.followers[node] = Progress(
                    incarnation, session, caught_up_at=now, heard_at=now
                )
                self._begin_session(node, self.log.end_offset)

    def metadata_grew(self, now: int) -> None:
        """Followers may know of the appointment now."""
        self._now = now
        for node, follower in self.followers.items():
            if follower.state == "waiting" and not follower.full and not follower.rebuilding:
                self._begin_session(node, follower.next)

    def alter(self, settings: LeaderSettings) -> None:
        """New settings from now on."""
        self.settings = settings

    # Appending ---

    def appended(self, base: int, following: int, batch: Buffer) -> None:
        """The owner appended a batch to the log: it goes to everyone who is up to there."""
        self.uncommitted.append((base, following, batch))
        for node, follower in self.followers.items():
            if follower.state == "streaming" and not follower.reading:
                self._pump(node, follower)

    def dropped(self, from_offset: int) -> None:
        """Nothing that was appended at an offset or later was kept: the disk is full, or the log failed.

        A follower may have it already. It is not acknowledged to anyone, and the offsets will be given again, in
        the same epoch: so the owner must not go on as the leader of this epoch where followers were told of it.
        """
        while self.uncommitted and self.uncommitted[-1][1] > from_offset:
            self.uncommitted.pop()

    # Hearing ---

    def on_appended(self, node: str, incarnation: int, answer: Appended, now: int) -> None:
        """A follower answered."""
        self._now = max(self._now, now)
        if answer.status == "stale" and answer.log_epoch > self.epoch:
            self.deposed = max(self.deposed, answer.log_epoch)
        follower = self.followers.get(node)
        if follower is None or follower.incarnation != incarnation or answer.epoch != self.epoch:
            return
        if answer.status == "ready":
            if follower.state == "waiting" and not (follower.full or follower.rebuilding):
                self._begin_session(node, follower.next)
            return
        if answer.session != follower.session:
            return
        if answer.stamp <= self._stamp:  # what was never asked confirms nothing
            follower.stamp = max(follower.stamp, answer.stamp)
        match answer.status:
            case "ok":
                self._on_ok(node, follower, answer)
            case "behind" | "diverged":
                if follower.state == "probing":
                    self._agree(node, follower, answer.log_epoch, answer.end)
            case "gap":
                self._on_gap(node, follower, answer)
            case "not_ready":
                self._wait(node, follower, RETRY_MS)
            case "full":
                self._wait(node, follower, FULL_MS)
                follower.full = True
            case "rebuild":
                self._wait(node, follower, RETRY_MS)
                follower.rebuilding = True
            case "stale":
                self._wait(node, follower, RETRY_MS)
        follower.heard_at = self._now
        follower.answered = True

    def _on_ok(self, node: str, follower: Progress, answer: Appended) -> None:
        if follower.state == "waiting":
            return
        if follower.state == "probing":
            if answer.end > self.log.end_offset:
                self._agree(node, follower, answer.log_epoch, answer.end)
                return
            follower.state = "streaming"
            follower.next = answer.end
            follower.full = follower.rebuilding = False
        self._note(node, follower, answer)
        self._pump(node, follower)

    def _on_gap(self, node: str, follower: Progress, answer: Appended) -> None:
        """Begins anew where the follower's log ends: at once, but not again and again."""
        soon = self._now - follower.gap_at < RETRY_MS
        follower.gap_at = self._now
        if soon:
            self._wait(node, follower, RETRY_MS)
            follower.next = min(answer.end, self.log.end_offset)
        else:
            self._begin_session(node, answer.end)

    def _note(self, node: str, follower: Progress, answer: Appended) -> None:
        """What an answer says of the part of the log that is known to agree."""
        # A probe's acceptance says where the logs agree; nothing behind what was sent can be acknowledged.
        follower.written = max(follower.written, min(answer.written, follower.next))
        follower.flushed = max(follower.flushed, min(answer.flushed, follower.next))
        follower.begun = max(follower.begun, answer.begun)
        follower.told = max(follower.told, answer.high_watermark)
        follower.limit = max(follower.limit, answer.limit)
        self._settle_budget(node, follower)
        durable = follower.durable(flushed=self.settings.flushed)
        follower.heard(self._now, durable, self.log.end_offset)

    # Time ---

    def on_tick(self, now: int) -> None:
        """About every 100 ms: what was not answered is asked again, and everyone is told the high watermark."""
        self._now = now = max(self._now, now)
        durable_of = self.settings.flushed
        for node, follower in self.followers.items():
            if follower.durable(flushed=durable_of) >= self.log.end_offset:
                follower.caught_up_at = now
            silent = now - max(follower.heard_at, follower.asked_at)
            if follower.state == "waiting":
                waits = follower.lacks or (follower.rebuilding and self._counts(node))
                if now >= follower.retry_at and not waits:
                    self._begin_session(node, follower.next)
            elif follower.state == "probing":
                if now - follower.sent_at >= RESEND_MS:
                    self._begin_session(node, follower.next)
            elif silent >= RESEND_MS and self._is_unanswered(follower):
                self._begin_session(node, follower.written)
            elif (
                follower.told < min(self.high_watermark, follower.next)
                and now - follower.sent_at >= REMIND_MS
            ):
                self._send_append(node, follower, [], follower.next)
            else:
                self._pump(node, follower)

    @property
    def at_rest(self) -> bool:
        """Whether every replica is in sync and knows all there is, so that no passing of time calls for anything."""
        end = self.log.end_offset
        flushed = self.settings.flushed
        return (
            self.high_watermark == end
            and self.proposed is None
            and len(self.isr) == 1 + len(self.followers)
            and all(
                node in self.isr
                and follower.state == "streaming"
                and not follower.reading
                and follower.durable(flushed=flushed) >= end
                and follower.begun >= self.epoch
                and follower.told >= end
                and follower.asked_at <= follower.heard_at
                for node, follower in self.followers.items()
            )
        )

    def heartbeat(self, now: int) -> None:
        """Sends something to every follower, so that it hears its leader and answers."""
        self._now = max(self._now, now)
        for node, follower in self.followers.items():
            if follower.state == "streaming" and follower.sent_at < now:
                self._send_append(node, follower, [], follower.next)
            elif (
                follower.state != "streaming"
                and not follower.lacks
                and now - follower.sent_at >= REMIND_MS
            ):
                self._begin_session(node, follower.next)

    def announce(self, now: int) -> None:
        """Tells every follower the high watermark at once, where it is news."""
        self._now = max(self._now, now)
        for node, follower in self.followers.items():
            if follower.state == "streaming" and follower.told < self.high_watermark:
                self._send_append(node, follower, [], follower.next)

    def confirm(self, now: int) -> int:
        """Asks the in-sync replicas whether they still follow; `confirmed` grows to the number once all have said so.

        Whoever is appointed in this leader's place is one of them, and can commit only once all of them follow it: so
        what this leader knew when it asked was still the newest.
        """
        self._now = max(self._now, now)
        self._stamp += 1
        for node, follower in self.followers.items():
            if self._counts(node) and follower.state == "streaming":
                self._send_append(node, follower, [], follower.next)
        return self._stamp

    @property
    def confirmed(self) -> int:
        """Up to which number of `confirm` all other in-sync replicas have answered."""
        others = [node for node in {*self.isr, *self.pending} if node != self.settings.node]
        if not all(node in self.followers for node in others):
            return -1
        return min((self.followers[node].stamp for node in others), default=self._stamp)

    def _is_unanswered(self, follower: Progress) -> bool:
        durable = follower.durable(flushed=self.settings.flushed)
        begins = follower.begun < self.epoch and follower.next >= self.epoch_start
        ignored = follower.asked_at > follower.heard_at
        return not follower.reading and (durable < follower.next or begins or ignored)

    @property
    def everyone_has_below(self) -> int:
        """Below which offset every follower that is up has everything; 0 while one of them is not heard."""
        return min(
            (each.written if each.state == "streaming" else 0 for each in self.followers.values()),
            default=1 << 62,
        )

    # Sessions ---

    def _begin_session(self, node: str, base: int) -> None:
        """Ends what was on with a follower, and asks whether the logs agree below an offset."""
        follower = self.followers[node]
        self._release(node, follower)
        follower.session += 1
        follower.state = "probing"
        follower.sent = follower.taken = follower.limit = 0
        follower.written = follower.flushed = 0
        follower.begun = -1
        follower.told = -1
        follower.reading = False
        self._probe(node, follower, base)

    def resume(self, node: str, offset: int, now: int) -> None:
        """A follower has everything below an offset, by other ways than its log."""
        self._now = max(self._now, now)
        self._begin_session(node, offset)

    def answered(self, node: str, now: int) -> None:
        """A follower was heard, in its present start, by other ways than its acknowledgements."""
        self._now = max(self._now, now)
        follower = self.followers[node]
        follower.heard_at = self._now
        follower.answered = True

    def _probe(self, node: str, follower: Progress, base: int) -> None:
        follower.lacks = self.settings.quorum and base < self.log.first_offset
        if follower.lacks:
            follower.state = "waiting"
            return
        follower.next = max(min(base, self.log.end_offset), self.log.first_offset)
        self._send_append(node, follower, [], follower.next, probe=True)

    def _agree(self, node: str, follower: Progress, epoch: int, end: int) -> None:
        """Probes at the end of the newest epoch that both know (KIP-101, KIP-279)."""
        found, ours = self.log.end_of_epoch(epoch)
        base = min(end, ours) if found == epoch else ours
        self._probe(node, follower, min(base, end))

    def _wait(self, node: str, follower: Progress, delay: int) -> None:
        self._release(node, follower)
        follower.session += 1  # whatever is on its way of the old one, a read among it, is stale
        follower.reading = False
        follower.state = "waiting"
        follower.retry_at = self._now + delay

    def _release(self, node: str, follower: Progress) -> None:
        """What was on its way to a follower is not waited for any more."""
        while follower.catching_up:
            follower.catching_up.popleft()
            self._budgets(node).give(CATCH_UP_READ)

    def _settle_budget(self, node: str, follower: Progress) -> None:
        """Catch-up that has arrived makes room for more."""
        while follower.catching_up and 0 <= follower.catching_up[0] <= follower.written:
            follower.catching_up.popleft()
            self._budgets(node).give(CATCH_UP_READ)

    # Sending ---

    def _pump(self, node: str, follower: Progress) -> None:
        """Sends what a follower has not been sent, as far as it lets the leader go."""
        while (
            follower.state == "streaming"
            and not follower.reading
            and follower.next < self.log.end_offset
        ):
            if follower.sent and follower.sent >= follower.limit:
                return
            if not self.uncommitted or follower.next < self.uncommitted[0][0]:
                self._read(node, follower)
                return
            self._send_live(node, follower)

    def go_on(self, node: str) -> None:
        """There may be room in the budget for a follower that is behind."""
        follower = self.followers.get(node)
        if follower is not None:
            self._pump(node, follower)

    def _send_live(self, node: str, follower: Progress) -> None:
        """One append out of memory."""
        batches: list[Buffer] = []
        size, following = 0, follower.next
        at = self._live_at(follower.next)
        if self.uncommitted[at][0] != follower.next:
            self._distrust(node, follower, self.uncommitted[at][0])
            return
        for _, behind, batch in islice(self.uncommitted, at, None):
            if batches and (size + len(batch) > APPEND_MAX or len(batches) >= BATCHES_MAX):
                break
            batches.append(batch)
            size += len(batch)
            following = behind
        self._send_append(node, follower, batches, following)

    def _live_at(self, offset: int) -> int:
        """Which of the uncommitted batches begins at an offset, or behind it; usually the last."""
        last = len(self.uncommitted) - 1
        if self.uncommitted[last][0] == offset:
            return last
        low, high = 0, last
        while low < high:
            middle = (low + high) // 2
            if self.uncommitted[middle][0] < offset:
                low = middle + 1
            else:
                high = middle
        return low

    def _distrust(self, node: str, follower: Progress, begins: int) -> None:
        """A follower said that its log ends within a batch: it is asked again, at where one begins."""
        self._wait(node, follower, RETRY_MS)
        follower.next = begins

    def _read(self, node: str, follower: Progress) -> None:
        """Asks for what a follower that is behind needs next; `on_read` sends it."""
        if follower.next >= self.log.written_offset:
            return
        more = bool(follower.catching_up)
        if not self._budgets(node).take_or_wait(CATCH_UP_READ, self, node, more=more):
            return
        follower.catching_up.append(-1)
        follower.reading = True
        token = CatchUp(node, self.epoch, follower.session)
        self.log.read_copy(token, follower.next, CATCH_UP_READ)

    def on_read(self, event: ReadDone, now: int) -> ZBrokerError | None:
        """The log has read for a follower; an error that nothing helps against is returned, for the node's log."""
        self._now = max(self._now, now)
        token: CatchUp = event.token
        follower = self.followers.get(token.node)
        if follower is None or (token.epoch, token.session) != (self.epoch, follower.session):
            return None
        follower.reading = False
        if event.error is not None:
            self._wait(token.node, follower, FULL_MS)
            return event.error
        if event.chunk:
            if event.base != follower.next:
                self._distrust(token.node, follower, event.base)
                return None
            follower.catching_up[-1] = event.next
            self._send_append(token.node, follower, [event.chunk], event.next)
        else:
            follower.catching_up.pop()
            self._budgets(token.node).give(CATCH_UP_READ)
            return None
        self._pump(token.node, follower)
        return None

    def _send_append(
        self,
        node: str,
        follower: Progress,
        batches: list[Buffer],
        following: int,
        *,
        probe: bool = False,
    ) -> None:
        log, settings, base = self.log, self.settings, follower.next
        message = Append(
            topic_id=settings.topic_id, partition=settings.partition, epoch=self.epoch,
            session=follower.session, base=base, prev_epoch=log.epoch_at(base - 1), probe=probe,
            begins=probe and base == (0 if settings.quorum else log.first_offset),
            rebuild=probe and follower.rebuilding and not self._counts(node),
            high_watermark=self.high_watermark, metadata=self._metadata,
            log_start=0 if settings.quorum else log.start_offset,  # each has snapshots of its own
            thinned=log.thinned_below, tombstones=log.tombstones_lost,
            epochs=log.epochs_between(base, following), position=follower.sent, stamp=self._stamp,
        )  # fmt: skip
        follower.next = following
        self.sent_beyond = max(self.sent_beyond, following)
        follower.sent += sum(len(batch) for batch in batches)
        follower.sent_at = self._now
        if follower.asked_at <= follower.heard_at:
            follower.asked_at = self._now
        self._send(node, message, batches)

    # Committing ---

    def advance(self) -> bool:
        """Moves the high watermark to what counts by now; whether it moved. Called after whatever may move it."""
        if self.high_watermark == self.log.end_offset:
            return False  # as far as it goes
        offset = self._committed()
        if offset <= self.high_watermark:
            return False
        self.high_watermark = offset
        return True

    def committed_batches(self) -> list[tuple[int, Buffer]]:
        """Takes the batches (base offset, bytes) that the high watermark has passed."""
        uncommitted, passed = self.uncommitted, []
        while uncommitted and uncommitted[0][1] <= self.high_watermark:
            base, _, batch = uncommitted.popleft()
            passed.append((base, batch))
        return passed

    def _committed(self) -> int:
        """The offset that counts, -1 while the rules of the module do not let it."""
        settings = self.settings
        own = self.log.flushed_offset if settings.flushed else self.log.written_offset
        offsets = {settings.node: own}
        for node, follower in self.followers.items():
            if follower.begun >= self.epoch:
                offsets[node] = follower.durable(flushed=settings.flushed)
        if settings.quorum:
            offset = majority_offset(offsets, self.isr)
            return offset if offset > self.epoch_start else -1
        members = {*self.isr, *self.pending}
        if not members <= offsets.keys():
            return -1
        offset = in_sync_offset(offsets, members)
        if offset < self.epoch_start:
            return -1
        # With too few in sync nothing new is committed; what is known to be committed is served all the same.
        return self._known if len(self.isr) < settings.min_insync else offset

    def heard_majority_since(self, since: int) -> bool:
        """Whether a majority of the voters, the leader counted in, answered since a time (check-quorum)."""
        heard = [node for node, follower in self.followers.items() if follower.heard_at >= since]
        return is_majority([*heard, self.settings.node], self.isr)

    # In-sync replicas ---

    def isr_to_propose(self, eligible: Collection[str], now: int) -> list[str] | None:
        """The ISR to ask the controller for, None where the present one is right or an answer is awaited.

        Args:
            eligible: nodes that are registered and not fenced, under the incarnations of `set_followers`.
        """
        if self.proposed is not None or self.settings.quorum:
            return None
        wanted = {node for node in self.isr if not self._must_leave(node, now)}
        for node, follower in self.followers.items():
            if node not in self.isr and node in eligible and self._may_join(follower):
                wanted.add(node)
        if wanted == set(self.isr):
            return None
        self.proposed = sorted(wanted)
        self.pending = wanted - set(self.isr)
        return self.proposed

    def isr_committed(self, isr: Collection[str]) -> None:
        """The metadata name another ISR; what was proposed is settled with it."""
        self.isr = sorted(isr)
        self.proposed = None
        self.pending = set()

    def isr_refused(self) -> None:
        """The controller definitely refused what was proposed."""
        self.proposed = None
        self.pending = set()

    def _must_leave(self, node: str, now: int) -> bool:
        if node == self.settings.node:
            return False
        follower = self.followers.get(node)
        if follower is None or follower.rebuilding or follower.full:
            return True
        durable = follower.durable(flushed=self.settings.flushed)
        if follower.state == "streaming" and durable >= self.log.end_offset:
            return False
        return now - follower.caught_up_at > self.settings.lag_max

    def _may_join(self, follower: Progress) -> bool:
        """In this epoch, and with everything that is committed (KIP-966, KIP-320).

        All that was committed before this epoch lies below its start, for the leader was in sync when it was
        appointed; all since lies below the high watermark.
        """
        durable = follower.durable(flushed=self.settings.flushed)
        return (
            follower.state == "streaming"
            and follower.begun >= self.epoch
            and 0 <= self.high_watermark <= durable
            and durable >= self.epoch_start
        )

    def _counts(self, node: str) -> bool:
        return node in self.isr or node in self.pending
