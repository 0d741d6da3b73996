"""Chunks that wait for their readers: who gets one, who waits, and until when."""

from __future__ import annotations

from collections import Counter

from zbroker.broker.limits import ReadLedger


class Reading:
    """A ledger, what it has begun, and what clients have yet to take."""

    def __init__(self, per_client: int, total: int) -> None:
        self.unread: Counter[bytes] = Counter()
        self.begun: list[tuple[bytes, int]] = []
        self.ledger = ReadLedger(
            unread=lambda client: self.unread.total() if client is None else self.unread[client],
            per_client=per_client, total=total,
        )  # fmt: skip
        self._numbers: Counter[bytes] = Counter()

    def ask(self, client: bytes) -> None:
        self._numbers[client] += 1
        number = self._numbers[client]
        self.ledger.ask(client, 1, lambda: self.begun.append((client, number)))

    def sent(self, client: bytes) -> None:
        """A chunk was read and is on its way."""
        self.unread[client] += 1
        self.ledger.done(client, 1)


def test_a_client_gets_as_much_as_it_may_have_and_the_rest_in_turn() -> None:
    reading = Reading(per_client=2, total=10)
    for _ in range(4):
        reading.ask(b"a")
    reading.ask(b"b")
    assert reading.begun == [(b"a", 1), (b"a", 2), (b"b", 1)]
    reading.sent(b"a")
    assert len(reading.begun) == 3, "what is sent and not taken counts as what is being read"
    reading.unread[b"a"] = 0
    reading.ledger.on_tick()
    assert reading.begun[3:] == [(b"a", 3)]


def test_who_asks_again_has_taken_a_chunk_and_gets_the_next_at_once() -> None:
    """A reader of more partitions than it may have chunks is not held to one round a tick."""
    reading = Reading(per_client=2, total=10)
    for _ in range(3):
        reading.ask(b"a")
    reading.sent(b"a")
    reading.sent(b"a")
    assert len(reading.begun) == 2
    reading.unread[b"a"] = 1
    reading.ask(b"a")
    assert reading.begun[2:] == [(b"a", 3)]


def test_with_nothing_left_for_all_a_client_without_a_chunk_still_gets_one() -> None:
    reading = Reading(per_client=4, total=2)
    reading.unread[b"frozen"] = 2
    reading.ask(b"a")
    reading.ask(b"a")
    assert reading.begun == [(b"a", 1)]
    reading.sent(b"a")
    reading.unread[b"a"] = 0
    reading.ask(b"a")
    assert reading.begun == [(b"a", 1), (b"a", 2)]
    reading.sent(b"a")
    reading.unread.clear()
    reading.ledger.on_tick()
    reading.sent(b"a")
    assert reading.begun == [(b"a", 1), (b"a", 2), (b"a", 3)]
    assert reading.ledger.idle


def test_a_thousand_that_are_refused_at_once_do_not_begin_each_other() -> None:
    """As when a topic is deleted under a reader whose chunks wait their turn."""
    reading, client, refused = Reading(per_client=1, total=10), b"a", []

    def start(number: int) -> None:
        refused.append(number)
        reading.ledger.done(client, 1)

    reading.ask(client)
    for number in range(3000):
        reading.ledger.ask(client, 1, lambda number=number: start(number))  # type: ignore[misc]
    reading.ledger.done(client, 1)
    assert refused == list(range(3000))
    assert reading.ledger.idle
