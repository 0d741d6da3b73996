"""A follower alone, by script, over a real log on a simulated disk: what it takes, discards, and says when."""

from __future__ import annotations

import random
from typing import Any

import pytest

from zbroker.log.events import EpochBegun, Event, Truncated
from zbroker.log.log import Log
from zbroker.log.settings import LogSettings
from zbroker.log.storage import Completion
from zbroker.protocol.batch import encode_batch, read_header, stamp
from zbroker.protocol.peers import Append, Appended
from zbroker.replication.follower import Follower
from zbroker.testing.disk import SimulatedDisk, SimulatedStorage


class Bench:
    """A follower of a leader of epoch 5."""

    def __init__(self, *, epoch: int = 5, known: int = 0, unclean: bool = False) -> None:
        self.disk = SimulatedDisk(random.Random(0))
        self.storage = SimulatedStorage(self.disk, None, self.deliver)
        self.log = Log("p", LogSettings(retention=None), self.storage)
        self.said: list[Appended] = []
        self.follower: Follower | None = None
        self.log.open()
        self.run()
        self.follow(epoch=epoch, known=known, unclean=unclean)

    def follow(self, *, epoch: int = 5, known: int = 0, unclean: bool = False) -> None:
        self.follower = Follower(
            self.log, topic_id="t", partition=0, epoch=epoch, send=self.said.append, known=known, unclean=unclean
        )  # fmt: skip
        self.epoch = epoch

    def deliver(self, completion: Completion) -> None:
        event: Event | None = self.log.on_event(completion, 0)
        follower = self.follower
        if follower is not None:
            if isinstance(event, Truncated):
                follower.on_truncated(event)
            elif isinstance(event, EpochBegun):
                follower.on_epoch_begun(event)
            follower.advance()

    def run(self) -> list[Appended]:
        """Everything that is under way; what was said."""
        self.storage.run_all()
        said = self.said.copy()
        self.said.clear()
        return said

    def hear(self, session: int, base: int, *batches: bytes, **fields: Any) -> None:
        assert self.follower is not None
        self.follower.on_append(
            Append(topic_id="t", epoch=self.epoch, session=session, base=base, **fields),
            list(batches),
        )

    def fill(self, count: int, epoch: int = 1) -> None:
        """Batches of an older epoch, as an earlier leader left them."""
        for _ in range(count):
            at = self.log.end_offset
            data = batch(at, epoch)
            self.log.append(data, read_header(data))
        self.run()


def batch(base: int, epoch: int = 5, value: bytes = b"x") -> bytearray:
    made = encode_batch([(0, None, value, ())], base_timestamp=1, max_timestamp=1)
    stamp(made, base_offset=base, append_time=1, leader_epoch=epoch)
    return made


def test_what_it_takes_and_says() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, epochs=[(5, 0)], high_watermark=0)
    first, *later = bench.run()
    assert (first.status, first.end) == ("ok", 0)
    assert later[-1].begun == 5
    bench.hear(1, 0, bytes(batch(0)), bytes(batch(1)), high_watermark=2)
    assert bench.said == [], "nothing is acknowledged before it is written"
    acknowledged = [(said.written, said.flushed) for said in bench.run()]
    assert acknowledged[-1] == (2, 2)
    assert acknowledged == sorted(acknowledged)
    assert bench.follower is not None
    assert bench.follower.high_watermark == 2
    bench.hear(1, 2, high_watermark=9)
    assert bench.follower.high_watermark == 2, "no more than it has"


def test_what_was_committed_without_it_is_flushed_later_and_acknowledged_as_what_it_is() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, epochs=[(5, 0)], high_watermark=0)
    bench.run()
    flushes = bench.disk.flushes
    bench.hear(1, 0, bytes(batch(0)), bytes(batch(1)), high_watermark=4)
    said = bench.run()[-1]
    assert (said.written, said.flushed) == (2, 0)
    assert bench.disk.flushes == flushes
    bench.hear(1, 2, bytes(batch(2)), bytes(batch(3)), high_watermark=4)
    said = bench.run()[-1]
    assert (said.written, said.flushed) == (4, 4), (
        "it has all that is committed: this may be waited for"
    )


def test_an_epoch_counts_as_begun_only_once_that_is_on_disk() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, epochs=[(5, 0)])
    assert [said.begun for said in bench.said] == [-1]
    assert bench.run()[-1].begun == 5


def test_what_it_has_is_acknowledged_again_and_a_hole_is_told() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, epochs=[(5, 0)])
    bench.hear(1, 0, bytes(batch(0)))
    bench.run()
    bench.hear(1, 0, bytes(batch(0)))
    assert bench.run()[-1].written == 1
    bench.hear(1, 5, bytes(batch(5)))
    assert [(said.status, said.end) for said in bench.run()] == [("gap", 1)]
    bench.hear(1, 1, bytes(batch(1)))
    assert bench.run() == [], "the session is over"


def test_damage_on_the_way_is_a_hole() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, epochs=[(5, 0)])
    bench.run()
    bench.hear(1, 0, bytes(batch(0)[:-1] + b"\xff"))
    assert [(said.status, said.end) for said in bench.run()] == [("gap", 0)]


def test_a_longer_log_is_cut_before_anything_is_acknowledged() -> None:
    bench = Bench()
    bench.fill(6)
    bench.hear(1, 4, probe=True, prev_epoch=1, epochs=[(5, 4)])
    assert bench.said == []
    said = bench.run()
    assert (said[0].status, said[0].end, said[-1].written, said[-1].begun) == ("ok", 4, 4, 5)
    assert bench.log.end_offset == 4


def test_a_leader_that_did_not_wait_for_the_cut_is_answered_in_its_newest_session() -> None:
    bench = Bench()
    bench.fill(6)
    bench.hear(1, 4, probe=True, prev_epoch=1, epochs=[(5, 4)])
    bench.hear(2, 4, probe=True, prev_epoch=1, epochs=[(5, 4)])
    bench.hear(3, 3, probe=True, prev_epoch=1, epochs=[(5, 3)])
    bench.hear(2, 4, probe=True, prev_epoch=1, epochs=[(5, 4)])
    assert bench.said == []
    said = bench.run()
    assert (said[0].session, said[0].status, said[0].end) == (3, "ok", 3)
    assert (said[-1].session, said[-1].begun) == (3, 5)
    assert bench.log.end_offset == 3


def test_where_the_logs_differ_it_says_what_it_knows() -> None:
    bench = Bench()
    bench.fill(3, epoch=1)
    bench.fill(3, epoch=3)
    bench.hear(1, 9, probe=True, prev_epoch=4)
    assert [(said.status, said.log_epoch, said.end) for said in bench.run()] == [("behind", 3, 6)]
    bench.hear(1, 5, probe=True, prev_epoch=2)
    assert [(said.status, said.log_epoch, said.end) for said in bench.run()] == [("diverged", 1, 3)]
    bench.hear(1, 3, probe=True, prev_epoch=1)
    assert bench.run()[-1].status == "ok"
    assert bench.log.end_offset == 3


@pytest.mark.parametrize("allowed", ["", "unclean", "rebuild"])
def test_nothing_that_is_committed_is_cut_unless_that_is_allowed(allowed: str) -> None:
    bench = Bench(known=5, unclean=allowed == "unclean")
    bench.fill(6)
    bench.hear(1, 4, probe=True, prev_epoch=1, rebuild=allowed == "rebuild")
    said = bench.run()
    if allowed:
        assert said[-1].status == "ok"
        assert bench.log.end_offset == 4
        assert bench.follower is not None
        assert bench.follower.high_watermark == 4
    else:
        assert [each.status for each in said] == ["rebuild"]
        assert bench.log.end_offset == 6


def test_once_it_agreed_in_an_epoch_nothing_is_cut_again() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, epochs=[(5, 0)])
    bench.hear(1, 0, bytes(batch(0)), bytes(batch(1)), bytes(batch(2)))
    bench.run()
    bench.hear(2, 1, probe=True, prev_epoch=5)
    said = bench.run()
    assert (said[0].status, said[0].end) == ("ok", 3)
    assert bench.log.end_offset == 3


@pytest.mark.parametrize("impatient", [False, True])
def test_nor_while_it_is_noted_that_the_leader_compacted_what_is_to_come(impatient: bool) -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, epochs=[(5, 0)])
    bench.hear(1, 0, bytes(batch(0)), bytes(batch(1)), bytes(batch(2)))
    bench.run()
    bench.hear(2, 1, probe=True, prev_epoch=5, thinned=10)
    if impatient:
        bench.hear(3, 1, probe=True, prev_epoch=5, thinned=10)
    said = bench.run()
    assert (said[0].session, said[0].status, said[0].end) == (2 + impatient, "ok", 3)
    assert (bench.log.end_offset, bench.log.thinned_below) == (3, 10)


def test_a_cut_for_which_there_is_no_room_is_told_in_the_newest_session() -> None:
    bench = Bench()
    bench.fill(6)
    bench.log.want_checkpoint()
    bench.run()
    bench.disk.budget = 0
    bench.hear(1, 4, probe=True, prev_epoch=1, epochs=[(5, 4)])
    bench.hear(3, 3, probe=True, prev_epoch=1, epochs=[(5, 3)])
    bench.hear(2, 5, probe=True, prev_epoch=1, epochs=[(5, 5)])
    assert [(said.session, said.status) for said in bench.run()] == [(3, "full")]
    assert bench.log.end_offset == 6
    bench.disk.budget = None
    bench.hear(1, 4, probe=True, prev_epoch=1, epochs=[(5, 4)])
    assert bench.run() == []
    bench.hear(4, 3, probe=True, prev_epoch=1, epochs=[(5, 3)])
    assert bench.run()[-1].status == "ok"
    assert bench.log.end_offset == 3


def test_a_probe_that_comes_during_a_rebuild_is_answered_once_it_is_done() -> None:
    bench = Bench(known=6)
    bench.fill(6)
    bench.hear(1, 4, probe=True, prev_epoch=1, rebuild=True)
    bench.hear(2, 4, probe=True, prev_epoch=1)
    assert {(said.session, said.status) for said in bench.run()} == {(2, "ok")}
    assert bench.log.end_offset == 4


def test_damage_that_begins_before_the_log_does_is_mended_from_where_the_leaders_begins() -> None:
    """Records were deleted up to within a batch that is damaged: there is nothing whole to cut the log down to."""
    bench = Bench()
    data = encode_batch([(0, None, b"x", ())] * 100, base_timestamp=1, max_timestamp=1)
    stamp(data, base_offset=0, append_time=1, leader_epoch=1)
    bench.log.append(data, read_header(data))
    bench.fill(20)
    bench.log.delete_before("token", 50)
    bench.run()
    bench.log.damaged = [(0, 100)]
    bench.hear(1, 120, probe=True, prev_epoch=1, epochs=[(1, 0)])
    assert [(said.status, said.end) for said in bench.run()] == [("rebuild", 0)]
    bench.hear(2, 120, probe=True, prev_epoch=1, rebuild=True, epochs=[(1, 0)])
    assert [(said.status, said.end) for said in bench.run()] == [("behind", 0)]
    assert bench.log.end_offset == 120, "until the leader asks where its own log begins"
    bench.hear(3, 0, probe=True, begins=True, rebuild=True, epochs=[(1, 0)])
    said = bench.run()[-1]
    assert (said.status, said.end) == ("ok", 0)
    assert not bench.log.damaged


def test_a_missing_first_segment_is_damage_that_is_mended() -> None:
    bench = Bench()
    bench.fill(4)
    bench.log.damaged = [(0, 2)]
    first, bench.log.segments[0].base = bench.log.segments[0].base, 2
    assert (first, bench.log.start_offset) == (0, 0)
    bench.hear(1, 4, probe=True, prev_epoch=1, epochs=[(1, 0)])
    assert [(said.status, said.end) for said in bench.run()] == [("rebuild", 0)]
    bench.hear(2, 4, probe=True, prev_epoch=1, rebuild=True, epochs=[(1, 0)])
    assert [(said.status, said.end) for said in bench.run()] == [("behind", 0)]


def test_a_leader_of_an_older_epoch_than_the_log_knows_is_stale() -> None:
    bench = Bench()
    bench.fill(3, epoch=7)
    bench.hear(1, 1, probe=True, prev_epoch=7)
    assert [(said.status, said.log_epoch) for said in bench.run()] == [("stale", 7)]
    assert bench.log.end_offset == 3


def test_an_epoch_that_led_to_nothing_is_forgotten() -> None:
    bench = Bench(epoch=9)
    bench.fill(2, epoch=1)
    bench.log.begin_epoch(6)
    bench.run()
    bench.hear(1, 2, probe=True, prev_epoch=1, epochs=[(4, 2)])
    assert bench.run()[-1].status == "ok"
    bench.hear(1, 2, bytes(batch(2, epoch=4)), epochs=[(4, 2), (9, 3)])
    assert bench.run()[-1].begun == 9
    assert [bench.log.end_of_epoch(epoch) for epoch in (1, 4, 9)] == [(1, 2), (4, 3), (9, 3)]


def test_a_log_that_ends_before_the_leaders_begins_starts_anew() -> None:
    bench = Bench()
    bench.fill(3)
    bench.hear(1, 50, probe=True, begins=True, prev_epoch=-1, log_start=52, epochs=[])
    said = bench.run()
    assert (said[-1].status, said[-1].end) == ("ok", 50)
    assert (bench.log.first_offset, bench.log.end_offset) == (50, 50)


def test_a_full_disk_is_told() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, epochs=[(5, 0)])
    bench.run()
    bench.disk.budget = bench.disk.used
    bench.hear(1, 0, bytes(batch(0, value=bytes(5000))), epochs=[(5, 0)])
    bench.storage.run_all()
    assert bench.log.full
    bench.hear(2, 0, probe=True, epochs=[(5, 0)])
    assert bench.run()[-1].status == "full"
