"""A leader alone, by script: what counts as committed, and what it must not believe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from zbroker.log.events import ReadDone
from zbroker.protocol.batch import Buffer
from zbroker.protocol.peers import Append, Appended
from zbroker.replication.leader import RESEND_MS, RETRY_MS, Leader, LeaderSettings
from zbroker.replication.ports import LinkBudget


class StubLog:
    """A leader's log: offsets and epochs, without a disk."""

    def __init__(self, epochs: list[tuple[int, int]], end: int) -> None:
        self.entries = epochs
        self.first_offset = self.start_offset = 0
        self.end_offset = self.written_offset = self.flushed_offset = end
        self.reads: list[tuple[Any, int]] = []
        self.thinned_below = self.tombstones_lost = 0

    @property
    def last_epoch(self) -> int:
        return self.entries[-1][0]

    def epoch_at(self, offset: int) -> int:
        found = [epoch for epoch, start in self.entries if start <= offset < self.end_offset]
        return found[-1] if found else -1

    def end_of_epoch(self, epoch: int) -> tuple[int, int]:
        below = [known for known, _ in self.entries if known <= epoch]
        above = [start for known, start in self.entries if known > epoch]
        return (below[-1] if below else -1), (above[0] if above else self.end_offset)

    def start_of_epoch(self, epoch: int) -> int:
        return dict(self.entries)[epoch]

    def epochs_between(self, first: int, last: int) -> list[tuple[int, int]]:
        return [entry for entry in self.entries if first <= entry[1] <= last]

    def read_copy(self, token: Any, offset: int, max_bytes: int) -> None:
        self.reads.append((token, offset))


class Bench:
    """A leader of epoch 5, which began at offset 10, with followers `b` and `c`."""

    def __init__(
        self,
        *,
        quorum: bool = False,
        min_insync: int = 1,
        known: int = 0,
        isr: str = "abc",
        budget: LinkBudget | None = None,
    ) -> None:
        self.log = StubLog([(1, 0), (5, 10)], 10)
        self.sent: list[tuple[str, Append]] = []
        self.now = 1000
        shared = budget or LinkBudget(1 << 20)
        self.leader = Leader(
            self.log,  # type: ignore[arg-type]
            LeaderSettings(node="a", topic_id="t", quorum=quorum, min_insync=min_insync, lag_max=1000),
            epoch=5, isr=list(isr), metadata=7, known=known, send=self.send, budgets=lambda _: shared,
            now=self.now,
        )  # fmt: skip
        self.leader.set_followers({"b": 1, "c": 1}, self.now)

    def send(self, node: str, message: Append, batches: Sequence[Buffer]) -> None:
        self.sent.append((node, message))

    def session(self, node: str) -> int:
        return self.leader.followers[node].session

    def hear(
        self, node: str, written: int, *, begun: int = 5, status: Any = "ok", **fields: Any
    ) -> int:
        answer = Appended(
            topic_id="t", epoch=5, session=fields.pop("session", self.session(node)),
            status=status, written=written, flushed=fields.pop("flushed", written), begun=begun,
            limit=1 << 30, end=fields.pop("end", written), **fields,
        )  # fmt: skip
        self.leader.on_appended(node, fields.pop("incarnation", 1), answer, self.now)
        self.leader.advance()
        return self.leader.high_watermark

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            base = self.log.end_offset
            self.log.end_offset += 1
            self.leader.appended(base, base + 1, b"batch")

    def flush(self) -> int:
        self.log.written_offset = self.log.flushed_offset = self.log.end_offset
        self.leader.advance()
        return self.leader.high_watermark


def test_nothing_is_exposed_before_every_member_is_in_the_epoch() -> None:
    bench = Bench()
    assert bench.hear("b", 10) == -1
    assert bench.hear("c", 10, begun=1) == -1
    assert bench.hear("c", 10, begun=5) == 10


def test_the_slowest_member_counts_and_flushed_counts() -> None:
    bench = Bench()
    for node in "bc":
        bench.hear(node, 10)
    bench.append(3)
    assert bench.flush() == 10
    assert bench.hear("b", 13) == 10
    assert bench.hear("c", 13, flushed=11) == 11
    assert bench.hear("c", 13) == 13
    assert [base for base, _ in bench.leader.committed_batches()] == [10, 11, 12]


def test_the_leaders_own_disk_counts() -> None:
    bench = Bench()
    for node in "bc":
        bench.hear(node, 10)
    bench.append(2)
    for node in "bc":
        assert bench.hear(node, 12) == 10
    assert bench.flush() == 12


def test_an_acknowledgement_beyond_what_was_sent_is_not_believed() -> None:
    bench = Bench(quorum=True)
    bench.hear("b", 10)
    bench.append()
    bench.flush()
    # A follower with an unmatched tail of its own says that it has more than it was sent.
    bench.leader.followers["b"].next = 10
    assert bench.hear("b", 99) == -1
    bench.leader.followers["b"].next = 11
    assert bench.hear("b", 99) == 11


def test_nor_is_it_where_written_counts() -> None:
    bench = Bench()
    bench.leader.alter(msgspec.structs.replace(bench.leader.settings, flushed=False))
    for node in "bc":
        bench.hear(node, 10)
    bench.append()
    bench.flush()
    bench.hear("c", 11)
    bench.leader.followers["b"].next = 10
    assert bench.hear("b", 99) == 10


def test_an_older_epoch_is_never_committed_by_counting() -> None:
    bench = Bench(quorum=True)
    assert bench.hear("b", 10) == -1, "a majority has all of epoch 1, and none of epoch 5"
    assert bench.hear("c", 10) == -1
    bench.append()
    assert bench.hear("b", 10) == -1
    assert bench.flush() == -1
    assert bench.hear("b", 11) == 11


def test_a_majority_commits_without_the_leaders_disk() -> None:
    bench = Bench(quorum=True)
    for node in "bc":
        bench.hear(node, 10)
    bench.append()
    bench.hear("b", 11)
    assert bench.hear("c", 11) == 11


def test_stale_answers_count_for_nothing() -> None:
    bench = Bench()
    old = bench.session("b")
    bench.hear("c", 10)
    bench.leader.set_followers({"b": 2, "c": 1}, bench.now)
    assert bench.session("b") > old
    assert bench.hear("b", 10, session=old) == -1
    stale = Appended(
        topic_id="t", epoch=4, session=bench.session("b"), written=10, flushed=10, begun=5, end=10
    )
    bench.leader.on_appended("b", 2, stale, bench.now)
    assert bench.leader.advance() is False
    fresh = Appended(
        topic_id="t", epoch=5, session=bench.session("b"), written=10, flushed=10, begun=5, end=10
    )
    bench.leader.on_appended("b", 1, fresh, bench.now)
    assert bench.leader.advance() is False, "an earlier start of that node"
    bench.leader.on_appended("b", 2, fresh, bench.now)
    assert bench.leader.advance() is True


def test_a_pending_member_counts_at_once() -> None:
    bench = Bench(isr="ab")
    bench.hear("b", 10)
    assert bench.leader.high_watermark == 10
    bench.hear("c", 10)
    assert bench.leader.isr_to_propose("abc", bench.now) == ["a", "b", "c"]
    bench.append()
    bench.flush()
    assert bench.hear("b", 11) == 10, "c may be in the ISR by now"
    assert bench.hear("c", 11) == 11


def test_a_shrink_counts_only_once_it_is_committed() -> None:
    bench = Bench()
    for node in "bc":
        bench.hear(node, 10)
    bench.append()
    bench.flush()
    bench.hear("b", 11)
    later = bench.now + 5000
    bench.leader.followers["b"].caught_up_at = later
    assert bench.leader.isr_to_propose("abc", later) == ["a", "b"]
    bench.leader.advance()
    assert bench.leader.high_watermark == 10
    bench.leader.isr_committed(["a", "b"])
    bench.leader.advance()
    assert bench.leader.high_watermark == 11


def test_nobody_joins_who_lacks_what_is_committed() -> None:
    bench = Bench(isr="ab")
    bench.hear("b", 10)
    bench.append(2)
    bench.flush()
    bench.hear("b", 12)
    bench.hear("c", 11)
    assert bench.leader.isr_to_propose("abc", bench.now) is None
    bench.hear("c", 12, begun=1)
    assert bench.leader.followers["c"].begun == 5
    assert bench.leader.isr_to_propose("abc", bench.now) == ["a", "b", "c"]


def test_nobody_joins_who_was_not_in_this_epoch() -> None:
    bench = Bench(isr="ab")
    bench.hear("b", 10)
    bench.hear("c", 10, begun=1)
    assert bench.leader.isr_to_propose("abc", bench.now) is None


def test_too_few_in_sync_commit_nothing_new() -> None:
    bench = Bench(isr="a", min_insync=2, known=6)
    assert bench.leader.advance() is True
    assert bench.leader.high_watermark == 6, "what is known to be committed is served"
    bench.append()
    assert bench.flush() == 6
    bench.hear("b", 11)
    assert bench.leader.isr_to_propose("abc", bench.now) == ["a", "b"]
    bench.leader.isr_committed(["a", "b"])
    bench.leader.advance()
    assert bench.leader.high_watermark == 11


def test_it_never_goes_back() -> None:
    bench = Bench(isr="a")
    bench.leader.advance()
    bench.append(3)
    assert bench.flush() == 13
    bench.leader.isr_committed(["a", "b"])
    bench.hear("b", 10)
    assert bench.leader.high_watermark == 13


def test_a_probe_goes_down_to_where_the_epochs_agree() -> None:
    bench = Bench()
    bench.hear("b", 0, status="behind", end=8, log_epoch=3, begun=-1)
    # Epoch 3 is not known here: the newest below it is 1, which ends at 10, beyond the follower's end.
    assert bench.sent[-1][1].base == 8
    bench.hear("b", 0, status="diverged", end=4, log_epoch=1, begun=-1)
    message = bench.sent[-1][1]
    assert (message.probe, message.base, message.prev_epoch) == (True, 4, 1)
    bench.hear("b", 0, status="diverged", end=2, log_epoch=-1, begun=-1)
    assert bench.sent[-1][1].begins


@pytest.mark.parametrize("status", ["not_ready", "full", "rebuild"])
def test_one_who_cannot_follow_is_tried_again_later(status: str) -> None:
    bench = Bench()
    bench.hear("b", 0, status=status)
    sent = len([node for node, _ in bench.sent if node == "b"])
    bench.leader.on_tick(bench.now + RETRY_MS - 1)
    assert len([node for node, _ in bench.sent if node == "b"]) == sent
    if status == "rebuild":
        bench.leader.on_tick(bench.now + 5000)
        assert not [m for node, m in bench.sent if node == "b" and m.rebuild], (
            "not while it is in the ISR"
        )
        bench.leader.isr_committed(["a", "c"])
    bench.leader.on_tick(bench.now + 9000)
    probes = [message for node, message in bench.sent if node == "b"][sent:]
    assert probes
    assert probes[-1].probe
    assert probes[-1].rebuild is (status == "rebuild")


def test_what_is_not_answered_is_asked_again_in_a_new_session() -> None:
    bench = Bench()
    bench.hear("b", 10)
    bench.append()
    session = bench.session("b")
    bench.leader.on_tick(bench.now + RESEND_MS)
    _, message = [item for item in bench.sent if item[0] == "b"][-1]
    assert (message.probe, message.base) == (True, 10)
    assert bench.session("b") == session + 1


def test_a_read_for_an_earlier_session_or_epoch_is_not_sent() -> None:
    bench = Bench()
    bench.hear("b", 0, status="behind", end=4, log_epoch=1, begun=-1)
    bench.hear("b", 4, begun=-1)
    ((token, offset),) = bench.log.reads
    assert (offset, token.epoch) == (4, 5)
    sent = len(bench.sent)
    for stale in (
        msgspec.structs.replace(token, epoch=4),
        msgspec.structs.replace(token, session=0),
    ):
        assert bench.leader.on_read(ReadDone(stale, 4, 6, b"chunk"), bench.now) is None
    assert len(bench.sent) == sent
    assert bench.leader.on_read(ReadDone(token, 4, 6, b"chunk"), bench.now) is None
    assert (bench.sent[-1][1].base, bench.leader.followers["b"].next) == (4, 6)


def test_a_follower_whose_log_ends_within_a_batch_is_asked_again() -> None:
    """No follower's does: whatever said so, no assertion here depends on it."""
    bench = Bench()
    bench.log.end_offset = 13
    bench.leader.appended(10, 13, b"batch")
    bench.hear("b", 10, end=11)
    follower = bench.leader.followers["b"]
    assert (follower.state, follower.next) == ("waiting", 10)
    bench.leader.on_tick(bench.now + RETRY_MS)
    assert follower.state == "probing"

    bench.leader.uncommitted.clear()
    bench.log.written_offset = 13
    bench.hear("b", 10, end=11)
    ((token, offset),) = bench.log.reads
    assert offset == 11
    assert bench.leader.on_read(ReadDone(token, 10, 13, b"chunk"), bench.now) is None
    assert (follower.state, follower.next) == ("waiting", 10)


def test_a_newer_epoch_at_a_follower_deposes() -> None:
    bench = Bench()
    bench.hear("b", 0, status="stale", log_epoch=9)
    assert bench.leader.deposed == 9


def test_who_comes_back_in_the_same_start_is_spoken_to_in_later_sessions() -> None:
    bench = Bench()
    before = bench.leader.followers["b"].session
    bench.leader.set_followers({"c": 1}, bench.now)
    bench.sent.clear()
    bench.leader.set_followers({"b": 1, "c": 1}, bench.now)
    assert [message.session > before for node, message in bench.sent if node == "b"] == [True]


# Whether it leads still ---


def asked(bench: Bench) -> int:
    """A leader with everyone in its epoch asks whether they still follow: the number that has to be confirmed."""
    for node in "bc":
        bench.hear(node, 10)
    bench.sent.clear()
    return bench.leader.confirm(bench.now)


def test_it_is_confirmed_once_every_other_in_sync_replica_has_said_so() -> None:
    bench = Bench()
    number = asked(bench)
    assert [(node, message.stamp) for node, message in bench.sent] == [("b", number), ("c", number)]
    assert bench.leader.confirmed < number
    bench.hear("b", 10, stamp=number)
    assert bench.leader.confirmed < number, "c may have been appointed, and has not answered"
    bench.hear("c", 10, stamp=number - 1)
    assert bench.leader.confirmed < number, "an answer to an earlier question"
    bench.hear("c", 10, stamp=number)
    assert bench.leader.confirmed == number
    assert bench.leader.confirm(bench.now) > bench.leader.confirmed, "each question is a new one"


def test_what_confirms_nothing() -> None:
    """Answers out of another session, of an earlier start, or to another epoch's leader."""
    bench = Bench()
    number = asked(bench)
    bench.hear("b", 10, stamp=number)
    bench.hear("c", 10, stamp=number, session=bench.session("c") - 1)
    assert bench.leader.confirmed < number
    for incarnation, epoch in ((7, 5), (1, 4), (1, 6)):
        answer = Appended(
            topic_id="t", epoch=epoch, session=bench.session("c"), written=10, flushed=10, begun=5,
            end=10, stamp=number,
        )  # fmt: skip
        bench.leader.on_appended("c", incarnation, answer, bench.now)
        assert bench.leader.confirmed < number


def test_an_answer_to_what_was_never_asked_confirms_nothing() -> None:
    bench = Bench()
    number = asked(bench)
    for node in "bc":
        bench.hear(node, 10, stamp=number + 1)
    assert bench.leader.confirm(bench.now) == number + 1
    assert bench.leader.confirmed < number


def test_a_follower_in_a_new_start_has_confirmed_nothing() -> None:
    bench = Bench()
    number = asked(bench)
    for node in "bc":
        bench.hear(node, 10, stamp=number)
    assert bench.leader.confirmed == number
    bench.leader.set_followers({"b": 1, "c": 2}, bench.now)
    assert bench.leader.confirmed < number


def test_an_in_sync_replica_that_is_not_sent_to_confirms_nothing() -> None:
    """It is down, as far as is known here, and in sync all the same: it may be up, and lead."""
    bench = Bench()
    bench.leader.set_followers({"b": 1}, bench.now)
    number = bench.leader.confirm(bench.now)
    bench.hear("b", 10, stamp=number)
    assert bench.leader.confirmed == -1


def test_who_is_not_in_sync_is_neither_asked_nor_waited_for() -> None:
    bench = Bench(isr="ab")
    number = asked(bench)
    assert [node for node, _ in bench.sent] == ["b"]
    bench.hear("b", 10, stamp=number)
    assert bench.leader.confirmed == number


def test_one_who_is_about_to_be_in_sync_is_asked_too() -> None:
    bench = Bench(isr="ab")
    for node in "bc":
        bench.hear(node, 10)
    assert bench.leader.isr_to_propose("abc", bench.now) == ["a", "b", "c"]
    number = bench.leader.confirm(bench.now)
    bench.hear("b", 10, stamp=number)
    assert bench.leader.confirmed < number
    bench.hear("c", 10, stamp=number)
    assert bench.leader.confirmed == number


def test_who_is_alone_in_sync_is_confirmed_at_once() -> None:
    bench = Bench(isr="a")
    number = bench.leader.confirm(bench.now)
    assert bench.leader.confirmed == number


def test_no_tombstone_goes_while_somebody_copies() -> None:
    """Whoever is up and follows has what is below the offset; who is not heard may have nothing."""
    bench = Bench()
    assert bench.leader.everyone_has_below == 0
    bench.hear("b", 10)
    assert bench.leader.everyone_has_below == 0
    bench.hear("c", 4, end=4)
    assert bench.leader.everyone_has_below == 4
    bench.leader.set_followers({"b": 1}, bench.now)
    assert bench.leader.everyone_has_below == 10
    bench.leader.set_followers({}, bench.now)
    assert bench.leader.everyone_has_below > 1 << 60


def test_partitions_that_wait_for_room_go_on_as_soon_as_another_has_caught_up() -> None:
    """Not at the next tick each: there are hundreds of them when a node comes back."""
    budget = LinkBudget(1 << 20)
    benches = [Bench(budget=budget) for _ in range(20)]
    for bench in benches:
        bench.hear("b", 5, begun=-1)
    waiting, caught_up = list(benches), []
    while waiting:
        reading = [bench for bench in waiting if bench.log.reads]
        assert 1 <= len(reading) <= 2
        for bench in reading:
            ((token, offset),) = bench.log.reads
            bench.log.reads.clear()
            bench.leader.on_read(ReadDone(token, offset, 10, bytes(100), None), bench.now)
            bench.hear("b", 10, begun=-1)
            waiting.remove(bench)
            caught_up.append(bench)
            budget.admit()
    assert caught_up == benches, "in turn"
    assert budget.free == budget.limit


def test_who_has_something_on_its_way_lets_others_go_first() -> None:
    budget = LinkBudget(100)
    told: list[str] = []

    class Waits:
        def __init__(self, name: str) -> None:
            self.name = name

        def go_on(self, node: str) -> None:
            told.append(f"{self.name} to {node}")
            budget.take_or_wait(50, self, node, more=self is large)

    large, small, other = Waits("large"), Waits("small"), Waits("other")
    assert budget.take_or_wait(50, large, "b", more=False)
    assert budget.take_or_wait(50, large, "b", more=True)
    assert not budget.take_or_wait(50, small, "b", more=False)
    assert not budget.take_or_wait(50, other, "b", more=False)
    budget.give(50)
    assert not budget.take_or_wait(50, large, "b", more=True)
    budget.admit()
    assert told == ["small to b"]
    budget.give(100)
    budget.admit()
    assert told == ["small to b", "other to b", "large to b"]
    budget.give(100)
    budget.admit()
    assert told[3:] == [], "nobody waits"
