"""When a peer's port is asked, and what follows from its answers: by script, in no real time."""

from __future__ import annotations

import selectors
import socket
from itertools import pairwise

import pytest

from zbroker.node.probes import Answer, Outcome, Probe, Watch
from zbroker.testing.nodes import free_ports, wait_for
from zbroker.units import Address


def probes(watch: Watch, outcome: Outcome, *, until: int, takes: int = 0) -> list[int]:
    """Answers every probe that falls due before `until` the same way; when they began."""
    began = []
    while watch.due is not None and watch.due < until:
        now = watch.due
        began.append(now)
        watch.begin(now)
        watch.on_outcome(outcome, now + takes)
    return began


def linked(now: int = 0) -> Watch:
    watch = Watch()
    assert watch.on_linked(now) == "up"
    return watch


def test_a_peer_that_is_linked_is_not_probed() -> None:
    watch = Watch()
    assert watch.due is None
    assert watch.on_linked(0) == "up"
    assert watch.due is None
    assert watch.on_linked(5) is None, "told once"


def test_a_lost_link_is_probed_at_once_then_quickly_then_slowly() -> None:
    watch = linked()
    watch.on_lost(10_000)
    began = probes(watch, "refused", until=12_000)
    assert began[:8] == [10_000, 10_002, 10_006, 10_014, 10_030, 10_055, 10_080, 10_105]
    quick = [at for at in began if at < 11_000]
    assert {later - at for at, later in pairwise(quick[4:])} == {25}
    slow = [at for at in began if at >= 11_025]
    assert {later - at for at, later in pairwise(slow)} == {250}
    assert len(slow) >= 3


def test_gone_is_told_at_the_first_refusal_and_repeated_every_100_ms_at_most() -> None:
    watch = linked()
    watch.on_lost(1000)
    told = []
    while watch.due is not None and watch.due < 3000:
        now = watch.due
        watch.begin(now)
        if watch.on_outcome("refused", now) == "gone":
            told.append(now)
    assert told[0] == 1000
    assert all(100 <= later - at <= 250 for at, later in pairwise(told))


@pytest.mark.parametrize("outcome", ["accepted", "nothing"])
def test_a_port_that_accepts_or_says_nothing_is_no_evidence(outcome: Outcome) -> None:
    watch = linked()
    watch.on_lost(0)
    for _ in range(200):
        if watch.due is None:
            watch.on_lost(5000)
            assert watch.due is not None
        now = watch.due
        watch.begin(now)
        assert watch.on_outcome(outcome, now) is None
    assert watch.told == "up"


def test_a_frozen_process_is_left_alone_until_libzmq_fails_again_but_asked_then() -> None:
    watch = linked()
    watch.on_lost(0)
    probes(watch, "accepted", until=100_000)
    assert watch.due is None
    watch.on_lost(100_000)
    assert watch.due == 100_000
    watch.begin(100_000)
    assert watch.on_outcome("accepted", 100_001) is None
    assert watch.due is None
    watch.on_lost(100_002)
    assert watch.due == 100_250, "no more often than slow probes"
    watch.begin(100_250)
    assert watch.on_outcome("refused", 100_250) == "gone"


def test_up_is_told_by_the_link_or_by_the_fifth_acceptance() -> None:
    watch = linked()
    watch.on_lost(0)
    watch.begin(0)
    assert watch.on_outcome("refused", 0) == "gone"
    for at in (2, 27, 52, 77):
        assert watch.due == at
        watch.begin(at)
        assert watch.on_outcome("accepted", at) is None
        assert watch.is_back() == (at == 2)
    watch.begin(102)
    assert watch.on_outcome("accepted", 102) == "up"
    assert not watch.is_back()

    watch = linked()
    watch.on_lost(0)
    watch.begin(0)
    assert watch.on_outcome("refused", 0) == "gone"
    watch.begin(2)
    assert watch.on_outcome("accepted", 3) is None
    assert watch.on_linked(5) == "up"
    assert (watch.due, watch.asking) == (None, False)


def test_acceptances_count_in_a_row_only() -> None:
    watch = linked()
    watch.on_lost(0)
    now = 0
    accepted: list[Outcome] = ["accepted"] * 4
    for outcome in ["refused", *accepted, "nothing", *accepted, "refused", *accepted]:
        watch.begin(now)
        assert watch.on_outcome(outcome, now) in (None, "gone")
        assert watch.due is not None
        now = watch.due
    assert watch.told == "gone"


def test_a_link_that_comes_while_a_probe_is_under_way_ends_it_and_its_loss_begins_anew() -> None:
    watch = linked()
    watch.on_lost(0)
    watch.begin(0)
    watch.on_lost(1)
    assert watch.due == 250, "the probe under way comes first"
    assert watch.on_linked(2) is None
    assert (watch.due, watch.asking) == (None, False)
    watch.on_lost(50_000)
    assert probes(watch, "accepted", until=50_010) == [50_000, 50_002, 50_006]


# The connects ---


def ended(addresses: list[Address], home: str | None = None) -> Answer:
    """A probe's answer."""
    with selectors.DefaultSelector() as selector:
        probe = Probe(selector, addresses, home=home, on_ready=lambda connection, now: None)

        def is_answered() -> bool:
            for key, _ in selector.select(0):
                assert isinstance(key.fileobj, socket.socket)
                probe.on_ready(key.fileobj)
            return probe.answer is not None

        wait_for(is_answered)
        assert not selector.get_map(), "a probe leaves nothing behind"
    assert probe.answer is not None
    return probe.answer


def test_a_port_that_is_listened_on_accepts_and_another_refuses() -> None:
    port = free_ports(1)
    here = Address("127.0.0.1", port)
    assert ended([here]) == Answer("refused")
    with socket.create_server(here):
        assert ended([here]) == Answer("accepted", "127.0.0.1")


def test_a_refusal_counts_from_all_addresses_or_from_the_one_it_was_last_at() -> None:
    port = free_ports(1)
    here, nowhere = Address("127.0.0.1", port), Address("fe80::1%nowhere0", port)
    assert ended([]) == Answer("nothing")
    assert ended([nowhere]) == Answer("nothing")
    assert ended([here, nowhere]) == Answer("nothing")
    assert ended([nowhere, here]) == Answer("nothing")
    assert ended([nowhere, here], home="127.0.0.1") == Answer("refused")
    with socket.create_server(here):
        assert ended([nowhere, here], home="fe80::1%nowhere0") == Answer("accepted", "127.0.0.1")


@pytest.mark.parametrize(
    "address", [Address("127.0.0.1", 70_000), Address("fe80::1%a b", 5550), Address("a\0b", 5550)]
)
def test_an_address_that_cannot_be_says_nothing(address: Address) -> None:
    with selectors.DefaultSelector() as selector:
        probe = Probe(selector, [address], home=None, on_ready=lambda *_: None)
        assert probe.answer is not None
        assert probe.answer.outcome == "nothing"
