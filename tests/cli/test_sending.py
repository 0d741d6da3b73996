"""What becomes of records: acknowledged, refused or unknown, and when a run ends with one."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from zbroker.cli.produce import _pump, _taker
from zbroker.cli.reading import InputRecord, Splitter
from zbroker.cli.sending import TOLD_MAX, RecordFailed, Sender
from zbroker.client.delivery import DeliveryGroup
from zbroker.errors import DeliveryTimeout, MessageTooLarge, ZBrokerError

LIMIT = 10_000
LATE = DeliveryTimeout("too late", outcome_unknown=True)
NEVER = DeliveryTimeout("never sent")


class Group(DeliveryGroup):
    """Deliveries whose outcomes the test sets; None is one on its way."""

    def __init__(self, outcomes: list[ZBrokerError | bool]) -> None:
        super().__init__(len(outcomes))
        self.outcome = outcomes

    def done(self) -> bool:
        return all(outcome is not False for outcome in self.outcome)

    def outcomes(self) -> tuple[int, list[tuple[int, ZBrokerError]]]:
        errors = [(at, one) for at, one in enumerate(self.outcome) if isinstance(one, ZBrokerError)]
        return sum(one is True for one in self.outcome), errors


class FakeProducer:
    """Takes everything but what is larger than LIMIT; `answer` makes the outcome of a value."""

    def __init__(self, answer: Callable[[bytes | None], ZBrokerError | bool]) -> None:
        self.sent: list[tuple[bytes | None, bytes | None]] = []
        self.bulks = 0
        self._answer = answer

    def send(self, topic: str, value: bytes | None, key: bytes | None = None, **_: Any) -> Any:
        if value is not None and len(value) > LIMIT:
            raise MessageTooLarge("too large")
        self.sent.append((key, value))
        return Group([self._answer(value)])

    def send_many(
        self, topic: str, values: Sequence[bytes], keys: Sequence[bytes] | None = None
    ) -> Any:
        self.bulks += 1
        assert len(values) > 0
        self.sent += list(zip(keys or [None] * len(values), values, strict=True))
        return Group([self._answer(value) for value in values])


class Run:
    """One run of `produce` against a fake producer."""

    def __init__(
        self,
        data: bytes,
        answer: Callable[[bytes | None], ZBrokerError | bool] = lambda _: True,
        *,
        skip: bool = False,
        separator: bytes | None = None,
        as_json: bool = False,
    ) -> None:
        self.told: list[str] = []
        self.producer = FakeProducer(answer)
        self.sender = Sender(self.producer, "t", limit=LIMIT, skip=skip, tell=self.told.append)
        self.failure = ""
        try:
            _pump(
                io.BytesIO(data),
                Splitter(b"\n", LIMIT),
                self.sender,
                _taker(as_json, separator),
                lambda _bytes, _records: None,
            )
            self.sender.settle()
        except RecordFailed as failure:
            self.failure = failure.message
        self.values = [value for _, value in self.producer.sent]


def test_all_is_well() -> None:
    run = Run(b"a\n\nb")
    assert run.values == [b"a", b"", b"b"]
    assert run.sender.complete
    assert run.sender.summary() == "3 records acknowledged"


def test_a_record_without_separator_stops_behind_those_before_it() -> None:
    run = Run(b"k=1\nk=2\noops\nk=3\n", separator=b"=")
    assert run.producer.sent == [(b"k", b"1"), (b"k", b"2")]
    assert run.failure.startswith("record 3: found no separator '=' in it")
    assert run.sender.summary() == "2 records acknowledged, 1 refused"


def test_records_without_separator_are_skipped() -> None:
    run = Run(b"x\nk=1\ny\nz\nk=2\n", separator=b"=", skip=True)
    assert run.producer.sent == [(b"k", b"1"), (b"k", b"2")]
    assert not run.failure
    assert not run.sender.complete
    assert run.sender.summary() == "2 records acknowledged, 3 refused"
    assert [told.split(":")[0] for told in run.told] == [
        "record 1 skipped",
        "record 3 skipped",
        "record 4 skipped",
    ]


def test_many_skipped_records_are_told_of_together() -> None:
    run = Run(b"x\n" * 1000, separator=b"=", skip=True)
    assert len(run.told) == TOLD_MAX + 1
    assert run.sender.summary() == "0 records acknowledged, 1,000 refused"


@pytest.mark.parametrize("skip", [False, True])
def test_a_record_that_is_too_large(skip: bool) -> None:
    run = Run(b"a\n" + b"x" * (3 * LIMIT) + b"\nb\n", skip=skip)
    assert run.values == ([b"a", b"b"] if skip else [b"a"])
    assert run.producer.bulks == 0
    text = run.told[0] if skip else run.failure
    assert text.startswith("record 2")
    assert "too large" in text
    assert not run.sender.complete


def test_bad_json_has_its_number() -> None:
    run = Run(b'{"value": "a"}\n{"value": 7}\n', as_json=True)
    assert run.values == [b"a"]
    assert run.failure.startswith("record 2: value: expected text")
    run = Run(b'{"value": 7}\n{"value": null, "key": "k"}\n', as_json=True, skip=True)
    assert run.producer.sent == [(b"k", None)]


def test_what_is_not_a_records_fault_is_not_skipped() -> None:
    run = Run(b"a\nb\nc\n", lambda value: LATE if value == b"b" else True, skip=True)
    assert run.failure.startswith("record 2: too late")
    assert run.sender.summary() == "2 records acknowledged, 1 of unknown outcome"


def test_every_failure_of_a_batch_is_counted() -> None:
    run = Run(b"a\nb\nc\nd\n", lambda value: {b"b": LATE, b"c": NEVER}.get(value or b"", True))
    assert run.failure.startswith("record 2: too late")
    assert run.sender.summary() == "2 records acknowledged, 1 refused, 1 of unknown outcome"


def test_what_is_on_its_way_is_unknown() -> None:
    run = Run(b"a\nb\n", lambda value: value == b"a")
    assert not run.failure
    assert not run.sender.complete
    assert run.sender.summary() == "1 record acknowledged, 1 of unknown outcome"


def test_numbers_go_on_from_chunk_to_chunk() -> None:
    producer = FakeProducer(lambda _: True)
    sender = Sender(producer, "t", limit=LIMIT, skip=False, tell=print)
    take = _taker(False, b"=")
    take(sender, 1, [b"a=1", b"b=2"])
    with pytest.raises(RecordFailed, match="record 4:"):
        take(sender, 3, [b"c=3", b"d"])
    sender.settle()
    assert sender.acknowledged == 3


def test_a_json_record_keeps_all_that_it_has() -> None:
    calls: list[dict[str, Any]] = []

    class Recorder(FakeProducer):
        def send(
            self, topic: str, value: bytes | None, key: bytes | None = None, **more: Any
        ) -> Any:
            calls.append(more)
            return super().send(topic, value, key)

    sender = Sender(Recorder(lambda _: True), "t", limit=LIMIT, skip=False, tell=print)
    sender.one(1, InputRecord(b"k", b"v", (("a", None),), 5, 2))
    assert calls == [{"partition": 2, "timestamp": 5, "headers": (("a", None),)}]
