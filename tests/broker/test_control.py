"""The controller's desk alone, by script: what it gives back to whom, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cluster.states import apply, nodes, set_isr, topic

from zbroker.broker.control import PREFER_MS, PREFER_SHARE, ControllerDesk
from zbroker.broker.ports import BrokerSettings
from zbroker.cluster import membership, moves
from zbroker.cluster.records import LeaderAppointed, MetadataRecord

PARTITIONS = 50


class Controller:
    """Node `c`, whose every proposal is taken, beside nodes `a` and `b`; `a` is preferred, and `b` leads."""

    def __init__(self) -> None:
        self.ready, self.leader = True, "c"
        self.replica = SimpleNamespace(epoch=1)
        self.disks: dict[str, str] = {}
        self.caught_up: list[str] = []
        self.draft = self.metadata = nodes("abc")
        self.partitions = topic(self.draft, *["ab"] * PARTITIONS)
        self.now = 0
        self.appointed: list[list[LeaderAppointed]] = []
        settings = BrokerSettings(
            node="c", cluster_name="x", disk_id="disk-c", host="h", port=1, voters=("c",)
        )
        self.desk = ControllerDesk(
            settings, cast("Any", self), cast("Any", SimpleNamespace(peers={})),
            identity=lambda: None, fresh_id=str, report=lambda *_, **__: None,
        )  # fmt: skip
        for number in range(PARTITIONS):
            set_isr(self.draft, "b", "ab", number=number)

    def heard(self, node: str) -> int:
        return self.now

    def propose(self, records: Sequence[MetadataRecord], done: Any, wall: int) -> None:
        apply(self.draft, records)
        self.appointed[-1] += [each for each in records if isinstance(each, LeaderAppointed)]

    def live(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> list[int]:
        """Ticks; how many leaders were appointed by each that appointed some."""
        self.appointed.clear()
        for _ in range(int(seconds * 10)):
            self.now += 100
            self.appointed.append([])
            self.desk.on_tick(self.now, 0)
            meanwhile()
        return [len(each) for each in self.appointed if each]

    def led(self, node: str) -> int:
        return moves.leading(self.draft, node)


@pytest.fixture
def controller() -> Controller:
    fresh = Controller()
    fresh.live(PREFER_MS / 1000)
    return fresh


def test_leaderships_go_back_a_few_at_a_time_and_then_no_more(controller: Controller) -> None:
    steps = controller.live(7)
    assert controller.led("a") == sum(steps) == PARTITIONS
    assert max(steps) == -(-PARTITIONS // PREFER_SHARE)
    assert controller.live(20) == []


def test_who_gives_a_leadership_up_at_once_neither_gets_it_at_once_nor_holds_up_the_others(
    controller: Controller,
) -> None:
    def give_up() -> None:
        epoch = controller.partitions[0].epoch
        apply(
            controller.draft,
            membership.elect_anew(controller.draft, "a", topic_id="t", number=0, epoch=epoch),
        )

    controller.live(7, give_up)
    assert controller.led("a") == PARTITIONS - 1
    controller.live(20, give_up)
    assert sum(map(len, controller.appointed)) <= 4


def test_who_is_back_in_sync_meanwhile_gets_its_own_back_with_the_others(
    controller: Controller,
) -> None:
    for number in range(PARTITIONS // 2):
        set_isr(controller.draft, "b", "b", number=number)
    controller.live(1)
    for number in range(PARTITIONS // 2):
        set_isr(controller.draft, "b", "ab", number=number)
    controller.live(6)
    assert controller.led("a") == PARTITIONS


def test_nothing_goes_back_any_more_to_who_is_drained_meanwhile(controller: Controller) -> None:
    controller.live(1)
    assert 0 < controller.led("a") < PARTITIONS
    apply(controller.draft, moves.drain_node(controller.draft, "a", undo=False))
    assert controller.led("a") == 0
    assert controller.live(20) == []


def test_nothing_goes_back_any_more_to_who_is_gone_meanwhile(controller: Controller) -> None:
    controller.live(1)
    assert 0 < controller.led("a") < PARTITIONS
    apply(controller.draft, membership.fence_node(controller.draft, "a", "gone"))
    assert controller.live(20) == []
    assert controller.led("b") == PARTITIONS
