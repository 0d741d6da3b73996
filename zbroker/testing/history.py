"""What clients of a cluster saw, and what of it may never be: the checks that need no look inside.

Owns the record of every send, poll and question, of simulated or of real clients alike, and pure functions over it,
one for each promise. Each gives sentences that name offsets, values and clients; none where all is well. Every value
that is sent must be unique. An outcome that is not known may have taken effect or not, once.

Where the checks come from: Jepsen's Kafka workload (inconsistent offsets, lost writes, unseen, duplicates, G1a,
poll skips, nonmonotonic polls and sends), with pushes added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["unknown", "ok", "fail"]
Problems = Iterator[str]


@dataclass(slots=True)
class Send:
    """One record sent.

    Attributes:
        partition: which log, by topic id and number, since a topic made again is another log; empty while it is
            not known.
        order: the producer's own count, in the order in which it sent.
        idempotent: it is there at most once.
        ordered: it stands behind what the same producer sent to the partition before.
        outcome: `fail` means that it is certainly not in the log.
        began, ended: seconds.
    """

    client: str
    partition: str
    value: bytes
    order: int
    began: float
    idempotent: bool = True
    ordered: bool = True
    outcome: Outcome = "unknown"
    offset: int = -1
    ended: float = -1.0
    error: str = ""


@dataclass(slots=True)
class Poll:
    """What one call handed to an application, of one partition.

    Attributes:
        session: the reader's assignment: within one, each poll goes on where the last ended.
        start, next: the positions before and after.
        records: offsets and values.
        pushed: at least a part of it came by push.
    """

    client: str
    partition: str
    session: int
    start: int
    next: int
    records: list[tuple[int, bytes]]
    at: float
    pushed: bool = False


@dataclass(slots=True)
class Asked:
    """A partition's end, as a node said it: the high watermark."""

    client: str
    partition: str
    node: str
    began: float
    ended: float
    offset: int


@dataclass(slots=True)
class History:
    """Everything that clients saw, in the order in which it ended.

    Attributes:
        excused: partitions that were allowed to lose what was acknowledged, and why.
        spared: of such a partition, the offset below which nothing may be lost all the same.
        deleted: offsets below which a partition's records were deleted; a topic that was deleted has them all below.
    """

    sends: list[Send] = field(default_factory=list)
    polls: list[Poll] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    excused: dict[str, str] = field(default_factory=dict)
    spared: dict[str, int] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)

    def acknowledged(self) -> Iterator[Send]:
        """The sends that were acknowledged with an offset, of partitions that promise to keep them."""
        for send in self.sends:
            if send.outcome != "ok" or send.offset < 0:
                continue
            if not self.may_be_lost(send.partition, send.offset):
                yield send

    def may_be_lost(self, partition: str, offset: int) -> bool:
        """Whether what was at an offset may be gone, or be something else now."""
        return partition in self.excused and offset >= self.spared.get(partition, 0)

    def kept(self) -> Iterator[Send]:
        """Those of them that nobody deleted."""
        for send in self.acknowledged():
            if send.offset >= self.deleted.get(send.partition, 0):
                yield send

    def seen(self) -> dict[str, dict[int, bytes]]:
        """What was polled, by partition and offset; the first sight counts."""
        found: dict[str, dict[int, bytes]] = {}
        for poll in self.polls:
            rows = found.setdefault(poll.partition, {})
            for offset, value in poll.records:
                rows.setdefault(offset, value)
        return found


def inconsistent_offsets(history: History) -> Problems:
    """One offset has one value, for everyone and for ever."""
    known: dict[tuple[str, int], tuple[bytes, str]] = {}
    for partition, offset, value, who in _sightings(history):
        before = known.setdefault((partition, offset), (value, who))
        if before[0] != value and not history.may_be_lost(partition, offset):
            yield (
                f"inconsistent: offset {offset} of {partition} is {_shown(before[0])} for {before[1]} "
                f"and {_shown(value)} for {who}"
            )


def _sightings(history: History) -> Iterator[tuple[str, int, bytes, str]]:
    for send in history.sends:
        if send.outcome == "ok" and send.offset >= 0:
            yield send.partition, send.offset, send.value, f"its sender {send.client}"
    for poll in history.polls:
        for offset, value in poll.records:
            yield poll.partition, offset, value, f"the reader {poll.client}"


def lost_writes(history: History) -> Problems:
    """What was acknowledged below the highest offset that anybody polled, somebody polled."""
    seen = history.seen()
    highest = {partition: max(rows, default=-1) for partition, rows in seen.items()}
    for send in history.kept():
        rows = seen.get(send.partition, {})
        if send.offset < highest.get(send.partition, -1) and send.offset not in rows:
            yield (
                f"lost: {_shown(send.value)} of {send.client}, acknowledged at offset {send.offset} of "
                f"{send.partition}, was polled by nobody, though {highest[send.partition]} was"
            )


def unseen(history: History) -> Problems:
    """After healing and a drain, everything that was acknowledged was polled."""
    seen = history.seen()
    for send in history.kept():
        if send.offset not in seen.get(send.partition, {}):
            yield (
                f"unseen: {_shown(send.value)} of {send.client}, acknowledged at offset {send.offset} of "
                f"{send.partition} at {send.ended:.3f} s, was never polled"
            )


def duplicates(history: History) -> Problems:
    """No value of an idempotent producer stands at two offsets."""
    idempotent = {send.value for send in history.sends if send.idempotent}
    places: dict[tuple[str, bytes], int] = {}
    for partition, offset, value, who in _sightings(history):
        if value not in idempotent or partition in history.excused:
            continue
        before = places.setdefault((partition, value), offset)
        if before != offset:
            yield (
                f"duplicate: {_shown(value)} stands at offset {before} of {partition} and, for {who}, at {offset}"
            )


def failed_but_there(history: History) -> Problems:
    """What definitely failed is never polled (G1a)."""
    failed = {send.value: send for send in history.sends if send.outcome == "fail"}
    for poll in history.polls:
        for offset, value in poll.records:
            send = failed.get(value)
            if send is not None:
                yield (
                    f"G1a: {_shown(value)} of {send.client} failed for certain ({send.error}), and {poll.client} "
                    f"polled it at offset {offset} of {poll.partition}"
                )


def invented(history: History) -> Problems:
    """What is polled was sent, and to that partition."""
    sent = {send.value: send.partition for send in history.sends}
    for poll in history.polls:
        for offset, value in poll.records:
            if sent.get(value) not in ("", poll.partition):
                yield (
                    f"invented: {poll.client} polled {_shown(value)} at offset {offset} of {poll.partition}, where "
                    f"nobody sent it (sent to: {sent.get(value)})"
                )


def poll_order(history: History) -> Problems:
    """With a fixed assignment, each poll begins where the last ended, and offsets only grow."""
    positions: dict[tuple[str, str, int], int] = {}
    for poll in history.polls:
        who = (poll.client, poll.partition, poll.session)
        expected = positions.get(who)
        if expected is not None and poll.start != expected:
            kind = "skipped" if poll.start > expected else "went back"
            yield (
                f"poll order: {poll.client} {kind} from {expected} to {poll.start} in {poll.partition} "
                f"at {poll.at:.3f} s"
            )
        last = poll.start - 1
        for offset, _ in poll.records:
            if offset <= last or offset >= poll.next:
                yield (
                    f"poll order: {poll.client} polled offset {offset} of {poll.partition} after {last}, in a poll "
                    f"from {poll.start} to {poll.next}"
                )
            last = offset
        positions[who] = poll.next


def send_order(history: History) -> Problems:
    """What one producer with sequences sent to a partition stands there in the order in which it was sent."""
    last: dict[tuple[str, str], Send] = {}
    for send in sorted(history.acknowledged(), key=lambda send: send.order):
        if not send.ordered:
            continue
        who = (send.client, send.partition)
        before = last.get(who)
        if before is not None and before.offset >= send.offset:
            yield (
                f"send order: {send.client} sent {_shown(before.value)} before {_shown(send.value)} to "
                f"{send.partition}, and they stand at {before.offset} and {send.offset}"
            )
        last[who] = send


def gaps(history: History) -> Problems:
    """What was delivered is reliable: a reader that got two records got every one that anybody saw in between."""
    seen = {
        partition: sorted(rows)
        for partition, rows in history.seen().items()
        if partition not in history.excused
    }
    got: dict[tuple[str, str, int], set[int]] = {}
    for poll in history.polls:
        who = (poll.client, poll.partition, poll.session)
        got.setdefault(who, set()).update(offset for offset, _ in poll.records)
    for (client, partition, session), offsets in got.items():
        if not offsets or partition not in seen:
            continue
        first, last = min(offsets), max(offsets)
        first = max(first, history.deleted.get(partition, 0) - 1)
        for offset in seen[partition]:
            if first < offset < last and offset not in offsets:
                yield (
                    f"gap: {client} (session {session}) got offsets {first} and {last} of {partition} but not "
                    f"{offset}, which others got"
                )


def stale_ends(history: History) -> Problems:
    """A partition's end, asked for after a record was acknowledged, lies beyond that record."""
    acknowledged: dict[str, list[Send]] = {}
    for send in history.acknowledged():
        acknowledged.setdefault(send.partition, []).append(send)
    for asked in history.asked:
        for send in acknowledged.get(asked.partition, ()):
            if 0 <= send.ended <= asked.began and send.offset >= asked.offset:
                yield (
                    f"stale end: {asked.node} told {asked.client} at {asked.ended:.3f} s that {asked.partition} ends "
                    f"at {asked.offset}, and offset {send.offset} had been acknowledged at {send.ended:.3f} s"
                )
                break


ALWAYS: tuple[Callable[[History], Problems], ...] = (
    inconsistent_offsets, lost_writes, duplicates, failed_but_there, invented, poll_order, send_order, gaps, stale_ends,
)  # fmt: skip
"""What holds at any time."""


def check(history: History, *, drained: bool = False, most: int = 10) -> list[str]:
    """What is wrong, in sentences; an empty list where nothing is.

    Args:
        drained: the cluster has been healed, and a reader has read every partition to its end.
        most: how many sentences are enough.
    """
    checks: Iterable[Callable[[History], Problems]] = (*ALWAYS, unseen) if drained else ALWAYS
    problems: list[str] = []
    for each in checks:
        for problem in each(history):
            problems.append(problem)
            if len(problems) >= most:
                return problems
    return problems


def _shown(value: bytes) -> str:
    text = value[:40].decode(errors="replace")
    return repr(text.rstrip("."))
