"""A batch's pen: whatever is put in, by whomever, whatever comes between, is in one batch, once, at its index."""

from __future__ import annotations

import gc
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from time import monotonic
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zbroker import Producer
from zbroker.client import accumulator as accumulating
from zbroker.client.accumulator import REFRESH, Accumulator
from zbroker.client.delivery import Batch, Delivery
from zbroker.client.filling import COARSE, EXACT, Keyed, Rows, open_pen
from zbroker.errors import BufferFull, ClientClosed, InvalidRequest

START = 1_700_000_000.0
LIMIT = 1 << 20


class Clock:
    """Both clocks, and what happens at the next look at the wall's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.interrupts: Callable[[], None] | None = None

    def wall(self) -> float:
        interrupts, self.interrupts = self.interrupts, None
        if interrupts is not None:
            interrupts()
        return START + self.now


def an_accumulator(clock: Clock, **options: Any) -> Accumulator:
    """A buffer whose topic `t` has one partition."""
    options = {"batch_bytes": 1 << 19, "buffer_bytes": 1 << 24, "linger": 1.0, **options}
    made = Accumulator(
        **options, delivery_timeout=60.0, record_max=LIMIT,
        clock=lambda: clock.now, wall=clock.wall,
    )  # fmt: skip
    with made.lock:
        made.lane("t")
    made.assign("t", 1, LIMIT)
    return made


def append(accumulator: Accumulator, value: bytes | None, **options: Any) -> Delivery:
    """By the way that takes the lock."""
    return accumulator.append(
        "t", value, options.get("key"), None, options.get("timestamp"), options.get("headers", ()),
        None, block=0,
    )  # fmt: skip


def a_producer(clock: Clock, **options: Any) -> Producer:
    """A producer without a thread, over a buffer whose topic `t` has one partition."""
    producer = Producer()
    producer._connection.start = lambda: None  # type: ignore[method-assign]
    producer._accumulator = accumulator = an_accumulator(clock, **options)
    producer._pens, producer._lanes = accumulator.pens, accumulator.fast
    return producer


def sealed(accumulator: Accumulator) -> list[Batch]:
    """Every batch there is, sealed."""
    accumulator.hurry_all()
    accumulator.due(0.0, lambda _batch: True)
    return list(accumulator.closed)


def content(batch: Batch, index: int) -> tuple[Any, ...]:
    """A sealed batch's record: value, key, headers."""
    return (
        batch.values[index], batch.keys and batch.keys[index], batch.headers[index] if batch.headers else ()
    )  # fmt: skip


# What is put in ---


PLAIN = st.binary(max_size=12)
KEYED = st.builds(Keyed, st.binary(max_size=4), PLAIN)
HEADERS = st.just(()) | st.just((("h", b"1"),))
ROWS = st.builds(
    lambda values, with_keys, headers, timestamp: Rows(
        values, [b"k"] * len(values) if with_keys else None, headers, timestamp,
        sum(16 + len(value or b"") for value in values),
        len(values[0] or b"") if None not in values and len(set(map(len, values))) == 1 else -1,
    ),
    st.lists(st.none() | PLAIN, min_size=1, max_size=4), st.booleans(), HEADERS,
    st.none() | st.just(1_600_000_000_000),
)  # fmt: skip


@example(given_to=[b"a", b"bb"])
@given(given_to=st.lists(PLAIN | KEYED | ROWS, min_size=1, max_size=12))
def test_a_pen_puts_in_whatever_it_is_given(given_to: list[Any]) -> None:
    clock = Clock()
    batch = Batch(an_accumulator(clock), "t", 0, limit=LIMIT, opened_at=0.0, wall=clock.wall)
    open_pen(batch)
    expected: list[tuple[Any, ...]] = []
    for record in given_to:
        delivery = batch.use_pen(record)
        assert delivery._index == len(expected)
        now = int((START + clock.now) * 1000)
        if isinstance(record, Rows):
            keys = record.keys or [None] * len(record.values)
            stamp = record.timestamp or now
            expected += [
                (value, key, record.headers, stamp)
                for value, key in zip(record.values, keys, strict=True)
            ]
        elif isinstance(record, Keyed):
            expected.append((record.value, record.key, (), now))
        else:
            expected.append((record, None, (), now))
        clock.now += 0.001
    batch.seal()
    batch.done = True
    found = [(*content(batch, at), batch.metadata(at).timestamp) for at in range(batch.count)]
    assert found == expected
    assert batch.deltas() == [batch.delta_of(at) for at in range(batch.count)]
    lengths = {None if value is None else len(value) for value, *_ in expected}
    assert batch.keys is not None or batch.mixed or (len(lengths) == 1 and None not in lengths)
    counted = sum(16 + len(value or b"") for value, *_ in expected)
    assert batch.size >= counted


@pytest.mark.parametrize(
    "record", ["text", None, 5, bytearray(b"x"), Keyed("k", b""), Keyed(b"k", None)]
)
def test_a_pen_refuses_what_has_to_be_looked_at(record: Any) -> None:
    producer = a_producer(Clock())
    append(producer._accumulator, b"first")
    pen = producer._pens["t"]
    assert pen(record) is None
    assert pen(b"second")._index == 1  # type: ignore[union-attr]


def test_a_full_batch_is_followed_by_another() -> None:
    producer = a_producer(Clock(), batch_bytes=1000)
    deliveries = [producer.send("t", b"%03d" % n, b"k" if n % 3 else None) for n in range(200)]
    batches = sealed(producer._accumulator)
    assert len(batches) > 3
    assert [batch.values[at] for batch in batches for at in range(batch.count)] == [
        b"%03d" % n for n in range(200)
    ]
    assert [one._batch.values[one._index] for one in deliveries] == [
        b"%03d" % n for n in range(200)
    ]
    assert all(batch.size <= 1000 for batch in batches)


def test_the_buffer_is_bounded_and_comes_back() -> None:
    producer = a_producer(Clock(), batch_bytes=1000, buffer_bytes=10_000)
    producer._block = 0.0
    with pytest.raises(BufferFull):
        producer.send_many("t", [bytes(34)] * 1000)
    with pytest.raises(BufferFull):
        [producer.send("t", bytes(34)) for _ in range(1000)]
    accumulator = producer._accumulator
    batches = sealed(accumulator)
    held = sum(batch.count * 50 for batch in batches)
    assert 8000 < held <= 10_000
    accumulator.finish(batches)
    assert accumulator.room == 10_000
    assert not accumulator.unfinished


def test_what_a_batch_takes_of_the_buffer_is_never_less_than_is_in_it() -> None:
    producer = a_producer(Clock())
    for count in range(1, 3 * EXACT):
        batch = producer.send("t", bytes(100))._batch
        assert batch.size >= count * 116
        assert batch.size <= count * 116 + COARSE


@pytest.mark.parametrize("key", [None, b"k"])
def test_what_is_finished_is_let_go_without_the_collector(key: bytes | None) -> None:
    producer = a_producer(Clock())
    accumulator = producer._accumulator
    value = random.randbytes(100)
    before = sys.getrefcount(value)
    gc.disable()
    try:
        batch = weakref.ref(producer.send("t", value, key)._batch)
        producer.send("t", value, key)
        accumulator.finish(sealed(accumulator))
        accumulator.closed.clear()
        assert sys.getrefcount(value) == before
        producer.send("t", b"opens the next", key)
        assert batch() is None
    finally:
        gc.enable()


# What comes between ---


def test_a_second_sender_that_comes_between_gets_another_batch() -> None:
    clock = Clock()
    producer = a_producer(clock)
    producer.send("t", b"before")
    inner: list[Delivery] = []
    clock.interrupts = lambda: inner.append(producer.send("t", b"inner"))
    outer = producer.send("t", b"outer")
    after = producer.send("t", b"after")
    batches = sealed(producer._accumulator)
    assert [batch.values for batch in batches] == [[b"before"], [b"inner", b"outer", b"after"]]
    for delivery, value in ((inner[0], b"inner"), (outer, b"outer"), (after, b"after")):
        assert delivery._batch.values[delivery._index] == value


@pytest.mark.parametrize("key", [None, b"k"])
def test_a_batch_sealed_while_its_pen_is_at_work_waits_for_nobody(key: bytes | None) -> None:
    """A signal's handler may flush in the midst of a `send`."""
    clock = Clock()
    producer = a_producer(clock)
    accumulator = producer._accumulator
    producer.send("t", b"before", key)
    clock.interrupts = lambda: void(sealed(accumulator))
    late = producer.send("t", b"late", key)
    assert [batch.values for batch in accumulator.closed] == [[b"before"]]
    assert [batch.values for batch in sealed(accumulator)] == [[b"before"], [b"late"]]
    assert late._batch.values[late._index] == b"late"


class Sealing(list[Any]):
    """Values that are sealed as soon as another one is in."""

    batch: Batch
    accumulator: Accumulator

    def append(self, value: Any) -> None:
        super().append(value)
        with self.accumulator.lock:
            self.accumulator._seal(self.batch)


@pytest.mark.parametrize("key", [None, b"k"])
def test_a_record_that_was_in_when_its_batch_was_sealed_is_not_sent_again(
    key: bytes | None,
) -> None:
    producer = a_producer(Clock())
    accumulator = producer._accumulator
    batch = append(accumulator, b"not looked at here")._batch
    values = batch.values = Sealing()
    values.batch, values.accumulator = batch, accumulator
    open_pen(batch)
    accumulator._offer(accumulator.lanes["t"], 0)
    delivery = producer.send("t", b"once", key)
    assert (delivery._batch, delivery._index) == (batch, 0)
    everything = [value for one in sealed(accumulator) for value in one.values]
    assert everything.count(b"once") == 1


def test_an_interrupted_pen_loses_nothing() -> None:
    clock = Clock()
    producer = a_producer(clock)
    producer.send("t", b"before")

    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.interrupts = interrupt
    with pytest.raises(KeyboardInterrupt):
        producer.send("t", b"interrupted", b"key")
    after = producer.send("t", b"after")
    assert [batch.values for batch in sealed(producer._accumulator)] == [[b"before"], [b"after"]]
    assert after._index == 0


class Between:
    """Acts once, where the nth call of the client's begins or ends: there a signal's handler may come."""

    def __init__(self, nth: int, action: Callable[[], None]) -> None:
        self.came = False
        self._left = nth
        self._action = action

    def __enter__(self) -> Between:
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _look(self, frame: FrameType, event: str, _what: Any) -> None:
        if event in ("call", "c_return") and "client/" in frame.f_code.co_filename:
            self._left -= 1
            if not self._left:
                self.came = True
                self._action()


def in_time(action: Callable[[], None]) -> None:
    """Has a thread act that may come to wait for ever."""
    raised: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits for ever"
    if raised:
        raise raised[0]


@pytest.mark.parametrize("topic", ["t", "new"])
@pytest.mark.parametrize("batch_bytes", [40, 1000], ids=["one a batch", "several"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_handler_may_send_wherever_it_comes_between(
    topic: str, batch_bytes: int, opened: bool
) -> None:
    def try_at(nth: int) -> bool:
        accumulator = an_accumulator(Clock(), batch_bytes=batch_bytes)
        made: dict[bytes, Delivery] = {}

        def put(value: bytes) -> None:
            made[value] = accumulator.append(topic, value, None, 0, None, (), void2, block=0)

        if opened:
            put(b"before")
        with Between(nth, lambda: put(b"inner")) as between:
            put(b"outer")
        put(b"after")
        batches = sealed(accumulator)
        values = [value for batch in batches for value in batch.values]
        assert sorted(values) == sorted(made)
        assert values[-1] == b"after"
        assert not opened or values[0] == b"before"
        for value, delivery in made.items():
            batch, index = delivery._batch, delivery._index
            assert batch.values[index] == value
            assert batch.callbacks is not None
            assert index in dict(batch.callbacks)
            assert topic == "t" or (batch.targets is not None and index in batch.targets)
        assert set(batches) == set(accumulator.unfinished)
        accumulator.finish(batches)
        assert accumulator.room == accumulator.buffer_bytes
        return between.came

    def try_everywhere() -> None:
        nth = 1
        while try_at(nth):
            nth += 1
        assert nth > 10

    in_time(try_everywhere)


@pytest.mark.parametrize("batch_bytes", [40, 1000], ids=["one a batch", "several"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_send_may_be_interrupted_wherever_it_is(batch_bytes: int, opened: bool) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    nth, came = 0, True
    while came:
        nth += 1
        accumulator = an_accumulator(Clock(), batch_bytes=batch_bytes)
        if opened:
            append(accumulator, b"before")
        try:
            with Between(nth, interrupt) as between:
                append(accumulator, b"interrupted")
        except KeyboardInterrupt:
            pass
        came = between.came
        append(accumulator, b"after")
        batches = sealed(accumulator)
        values = [value for batch in batches for value in batch.values]
        assert values.count(b"interrupted") <= 1
        kept = [value for value in values if value != b"interrupted"]
        assert kept == ([b"before", b"after"] if opened else [b"after"])
        assert set(batches) == set(accumulator.unfinished)
        accumulator.finish(batches)
        assert accumulator.room == accumulator.buffer_bytes
    assert nth > 10


def test_a_handler_does_not_wait_for_the_send_that_it_interrupts() -> None:
    clock = Clock()
    producer = a_producer(clock, batch_bytes=1000, buffer_bytes=1000)
    before = producer.send("t", b"before")
    raised: list[BaseException] = []

    def wait() -> None:
        for call in (before.result, producer.flush, lambda: producer.send("u", bytes(990), "key")):
            try:
                call()
            except (InvalidRequest, BufferFull) as error:
                raised.append(error)

    def send() -> None:
        clock.interrupts = wait
        producer.send("t", b"interrupted", "key")

    in_time(send)
    assert [type(error) for error in raised] == [InvalidRequest, InvalidRequest, BufferFull]
    assert all("signal's handler" in str(error) for error in raised)


def test_who_comes_when_everything_is_finished_does_not_wait_for_room() -> None:
    accumulator = an_accumulator(Clock(), batch_bytes=1000, buffer_bytes=1000)
    append(accumulator, b"x")
    told: list[int] = []
    accumulator.when_room(lambda: told.append(1))
    assert not told
    accumulator.finish(sealed(accumulator))
    assert told == [1]
    accumulator.wait_for_room(monotonic() + 0.2)
    accumulator.when_room(lambda: told.append(2))
    assert told == [1, 2]
    append(accumulator, b"y")
    with pytest.raises(BufferFull):
        accumulator.wait_for_room(monotonic())
    accumulator.refuse("closed")
    accumulator.wait_for_room(monotonic() + 0.2)
    accumulator.when_room(lambda: told.append(3))
    assert told == [1, 2, 3]


def test_a_closed_producer_takes_nothing() -> None:
    producer = a_producer(Clock())
    producer.send("t", b"before")
    producer._accumulator.refuse("closed")
    producer._refusal = "closed"
    for key in (None, b"k"):
        with pytest.raises(ClientClosed):
            producer.send("t", b"after", key)


def test_without_a_gil_every_record_takes_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulating, "UNLOCKED", False)
    producer = a_producer(Clock(), batch_bytes=200)
    for n in range(50):
        producer.send("t", b"%d" % n, b"k" if n % 2 else None)
        assert all(pen is accumulating.full for pen in producer._lanes["t"].pens)
        assert all(pen is accumulating.full for pen in producer._pens.values())
    values = [value for batch in sealed(producer._accumulator) for value in batch.values]
    assert values == [b"%d" % n for n in range(50)]


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_threads_that_send_and_seal_at_once_lose_and_double_nothing() -> None:
    producer = a_producer(Clock(), batch_bytes=4000)
    accumulator = producer._accumulator
    accumulator.room = 1 << 40
    made: list[list[tuple[tuple[Any, ...], Delivery]]] = [[] for _ in range(4)]
    groups: list[Any] = []

    def send(number: int) -> None:
        rng = random.Random(number)
        for count in range(3000):
            value, key = b"%d" % (count % 7), rng.choice((None, None, b"k%d" % number))
            made[number].append(((value, key, ()), producer.send("t", value, key)))
            if count % 500 == 0:
                groups.append(producer.send_many("t", [b"many"] * 100))

    running = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in running:
        thread.start()
    while any(thread.is_alive() for thread in running):
        sealed(accumulator)
    batches = sealed(accumulator)
    places: set[tuple[Batch, int]] = set()
    for expected, delivery in (pair for one in made for pair in one):
        assert content(delivery._batch, delivery._index) == expected
        places.add((delivery._batch, delivery._index))
    for group in groups:
        for batch, first, positions in group._parts:
            for at in range(first, first + len(positions)):
                assert content(batch, at) == (b"many", None, ())
                places.add((batch, at))
    assert len(places) == 4 * 3000 + 24 * 100 == sum(batch.count for batch in batches)


# Timestamps ---


def stamps(producer: Producer, count: int, clock: Clock, pause: float) -> list[int]:
    """How old, in ms, each record's timestamp is that is sent after a pause."""
    sent = []
    for _ in range(count):
        clock.now += pause
        sent.append((producer.send("t", bytes(100)), int((START + clock.now) * 1000)))
    for batch in sealed(producer._accumulator):
        batch.done = True
    return [now - delivery.result(0).timestamp for delivery, now in sent]


def test_the_first_records_of_a_batch_bear_the_clocks_time() -> None:
    clock = Clock()
    ages = stamps(a_producer(clock), EXACT, clock, 0.003)
    assert set(ages) == {0}


def test_the_clock_is_read_every_few_records_of_many() -> None:
    clock = Clock()
    ages = stamps(a_producer(clock), 4000, clock, 0.0001)
    assert min(ages) == 0
    assert max(ages) <= COARSE // 100 * 0.1 + 1


def test_a_pause_makes_no_timestamp_old() -> None:
    clock = Clock()
    producer = a_producer(clock)
    accumulator = producer._accumulator
    for _ in range(EXACT + 2):
        producer.send("t", b"x")
    wanted = accumulator.due(clock.now, lambda _batch: False)
    assert wanted is not None
    assert wanted <= clock.now + REFRESH
    clock.now += 0.2
    wanted = accumulator.due(clock.now, lambda _batch: False)
    assert wanted is not None
    assert wanted <= clock.now + REFRESH
    delivery = producer.send("t", b"y")
    (batch,) = sealed(accumulator)
    assert batch.delta_of(delivery._index) == 200
    assert batch.delta_of(delivery._index - 1) == 0


def test_a_clock_that_is_set_back_changes_nothing() -> None:
    clock = Clock()
    producer = a_producer(clock)
    clock.now = 10.0
    producer.send("t", b"first")
    clock.now = 12.0
    producer.send("t", b"second")
    clock.now = 5.0
    producer.send("t", b"third")
    producer.send("t", b"fourth", timestamp=int(START * 1000))
    producer.send("t", b"fifth")
    (batch,) = sealed(producer._accumulator)
    assert batch.deltas() == [0, 2000, 2000, -10_000, 2000]


def test_a_timestamp_of_ones_own_is_that_records_alone() -> None:
    clock = Clock()
    producer = a_producer(clock)
    producer.send("t", b"now")
    producer.send("t", b"then", timestamp=int(START * 1000) - 7)
    producer.send("t", b"now")
    producer.send("t", b"later", timestamp=int(START * 1000) + 7)
    producer.send("t", b"now", b"key")
    for _ in range(EXACT):
        producer.send("t", b"now")
    producer.send("t", b"then", timestamp=int(START * 1000) - 7)
    producer.send("t", b"now")
    (batch,) = sealed(producer._accumulator)
    assert batch.deltas() == [0, -7, 0, 7, 0, *[0] * EXACT, -7, 0]


def void(_what: Any) -> None:
    """Nothing of it is wanted."""


def void2(_metadata: Any, _error: Any) -> None:
    """Nobody wants to know."""


@pytest.mark.parametrize("keyed", [False, True])
def test_many_records_go_into_batches_that_the_topic_takes(keyed: bool) -> None:
    producer = a_producer(Clock())
    producer._accumulator.assign("t", 2, 4000)
    values = [b"%04d" % n + bytes(96) for n in range(1000)]
    group = producer.send_many("t", values, [b"%d" % n for n in range(1000)] if keyed else None)
    batches = sealed(producer._accumulator)
    assert max(batch.size for batch in batches) <= 4000
    assert len(batches) < 60
    assert sorted(value for batch in batches for value in batch.values) == values
    assert group.accepted() == 1000


def test_any_number_of_partitions_share_the_buffer() -> None:
    accumulator = an_accumulator(Clock(), buffer_bytes=64 << 20)
    for number in range(5000):
        topic = f"t{number}"
        with accumulator.lock:
            accumulator.lane(topic)
        accumulator.assign(topic, 1, LIMIT)
        accumulator.append(topic, b"x" * 100, None, None, None, (), None, block=0)
        assert not accumulator.closed, "none is sealed for another's sake"
    assert len(accumulator.unfinished) == 5000
    assert accumulator.room >= 0
    assert [batch.charge for batch in list(accumulator.unfinished)[:16]] == [1 << 19] * 16, (
        "few take whole batches"
    )
