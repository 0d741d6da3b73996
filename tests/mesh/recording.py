"""Real clients at work, every outcome recorded: producers and consumers in threads of the test's own process.

Owns one `History` of what all of them see, and how long a producer ever had to wait. The clients are the public
`Producer` and `Consumer` with nothing changed; what a history may not contain, `zbroker.testing.history` says.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from itertools import pairwise
from time import monotonic
from typing import Any, NamedTuple

from zbroker import Admin, Consumer, Producer, ZBrokerError
from zbroker.testing.history import History, Poll, Send, check
from zbroker.testing.nodes import wait_for

DELIVERY_TIMEOUT = 60.0
DRAIN_TIMEOUT = 60.0


class Gap(NamedTuple):
    """The longest time between two acknowledgements of one producer: seconds, and when it began."""

    seconds: float
    began: float


class Workload:
    """Producers that send unique values at a pace, and consumers from the start. A context manager.

    Attributes:
        history: what they all saw; complete once `stop` has returned.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        producers: int = 2,
        consumers: int = 2,
        partitions: int,
        interval: float = 0.01,
    ) -> None:
        self.servers = servers
        self.topic = topic
        self.history = History()
        self._interval = interval
        self._partitions = partitions
        self._producing = threading.Event()
        self._consuming = threading.Event()
        self._producing.set()
        self._consuming.set()
        self._producers: list[threading.Thread] = []
        self._consumers: list[threading.Thread] = []
        self._open: list[Consumer] = []
        self.trouble: list[str] = []
        self.add(producers=producers, consumers=consumers)

    def add(self, *, producers: int = 0, consumers: int = 0) -> None:
        """Starts more clients, in the network namespace in which the caller is."""
        for _ in range(producers):
            name = f"producer{len(self._producers)}"
            self._producers.append(self._thread(self._produce, name))
        for _ in range(consumers):
            name = f"consumer{len(self._consumers)}"
            self._consumers.append(self._thread(self._consume, name))

    def _thread(self, target: Any, name: str) -> threading.Thread:
        def run() -> None:
            try:
                target(name)
            except BaseException as error:
                self.trouble.append(f"{name} ended with {error!r}")

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def _produce(self, name: str) -> None:
        producer = Producer(self.servers, linger_ms=0, delivery_timeout=DELIVERY_TIMEOUT)
        pause = threading.Event()
        order = 0
        with contextlib.closing(producer):
            while self._producing.is_set():
                order += 1
                send = Send(name, "", f"{name}-{order}".encode(), order, monotonic())
                self.history.sends.append(send)
                producer.send(
                    self.topic,
                    send.value,
                    key=str(order % (4 * self._partitions)).encode(),
                    on_delivery=lambda metadata, error, send=send: _came(send, metadata, error),
                )
                pause.wait(self._interval)  # nobody sets it: this is the pace
            producer.flush(DELIVERY_TIMEOUT)

    def _consume(self, name: str) -> None:
        with Consumer(self.servers, self.topic, start="earliest") as consumer:
            self._open.append(consumer)
            positions: dict[tuple[str, int], int] = {}
            while self._consuming.is_set():
                records = consumer.poll(0.2)
                after = consumer.position()
                self._keep(name, records, positions, after)
                positions = after

    def _keep(
        self, name: str, records: list[Any], before: dict[Any, int], after: dict[Any, int]
    ) -> None:
        found: dict[tuple[str, int], list[tuple[int, bytes]]] = {}
        for record in records:
            place = (record.topic, record.partition)
            found.setdefault(place, []).append((record.offset, record.value))
        for place, rows in found.items():
            start = before.get(place, 0)
            polled = Poll(name, str(place[1]), 0, start, after[place], rows, monotonic())
            self.history.polls.append(polled)

    # What was seen ---

    @property
    def producer_names(self) -> list[str]:
        """The producers, in the order in which they were added."""
        return [thread.name for thread in self._producers]

    def acknowledged(self, since: float, of: str) -> int:
        """How many records of a producer have been acknowledged after a moment."""
        return sum(
            send.outcome == "ok" and send.ended > since and send.client == of
            for send in self.history.sends
        )

    def wait_for_more(
        self, count: int = 50, timeout: float = 30.0, of: list[str] | None = None
    ) -> None:
        """Waits until so many records of each producer, or of some, that were sent from now on are acknowledged."""
        began = monotonic()
        names = self.producer_names if of is None else of

        def there() -> bool:
            assert not self.trouble, self.trouble
            fresh: dict[str, int] = {}
            for send in reversed(self.history.sends):
                if send.began < began:
                    break
                if send.outcome == "ok":
                    fresh[send.client] = fresh.get(send.client, 0) + 1
            return all(fresh.get(name, 0) >= count for name in names)

        wait_for(there, timeout, f"{count} more acknowledged records of each producer")

    def gap_since(self, began: float) -> Gap:
        """The longest wait of any producer between two acknowledgements, the later one after `began`."""
        ends: dict[str, list[float]] = {}
        for send in self.history.sends:
            if send.outcome == "ok":
                ends.setdefault(send.client, []).append(send.ended)
        longest = Gap(0.0, 0.0)
        for times in ends.values():
            times.sort()
            for earlier, later in pairwise(times):
                if later > began:
                    longest = max(longest, Gap(later - earlier, earlier))
        return longest

    def not_acknowledged(self) -> list[str]:
        """Sends that did not succeed, in a few words each."""
        return [
            f"{send.value!r}: {send.outcome} {send.error}"
            for send in self.history.sends
            if send.outcome != "ok"
        ]

    # The end ---

    def __enter__(self) -> Workload:
        return self

    def __exit__(self, *_: object) -> None:
        self._producing.clear()
        self._consuming.clear()
        for consumer in self._open:
            consumer.close()

    def stop(self) -> History:
        """Ends the producers, has every consumer read all there is, and returns the history.

        Raises:
            TimeoutError: the clients did not come to an end; the message says how far each consumer came.
        """
        self._producing.clear()
        for thread in self._producers:
            thread.join(DELIVERY_TIMEOUT + 10)
            assert not thread.is_alive(), f"{thread.name} does not end"
        ends = self._ends()
        try:
            wait_for(lambda: self._all_read(ends), DRAIN_TIMEOUT, "every consumer to read all")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {ends}, and {self._read()}") from None
        self._consuming.clear()
        for thread in self._consumers:
            thread.join(10)
        assert not self.trouble, self.trouble
        return self.history

    def _ends(self) -> dict[str, int]:
        with Admin(self.servers) as admin:
            partitions = admin.describe_topic(self.topic).partitions
        assert all(partition.high_watermark is not None for partition in partitions), partitions
        return {str(part.partition): part.high_watermark or 0 for part in partitions}

    def _read(self) -> dict[tuple[str, str], int]:
        return {(poll.client, poll.partition): poll.next for poll in self.history.polls}

    def _all_read(self, ends: dict[str, int]) -> bool:
        assert not self.trouble, self.trouble
        read = self._read()
        return all(
            read.get((thread.name, partition), 0) >= end
            for thread in self._consumers
            for partition, end in ends.items()
        )

    def check(self) -> None:
        """Stops everything and judges: nothing lost, doubled, reordered, skipped or invented."""
        assert check(self.stop(), drained=True) == []


def _came(send: Send, metadata: Any, error: ZBrokerError | None) -> None:
    send.ended = monotonic()
    if error is None:
        send.partition, send.offset = str(metadata.partition), metadata.offset
        send.outcome = "ok"
    else:
        send.error = str(error)
        send.outcome = "unknown" if error.outcome_unknown else "fail"


@contextlib.contextmanager
def working(servers: str, topic: str, **settings: Any) -> Iterator[Workload]:
    """A workload whose first records are acknowledged; settings as for `Workload`."""
    with Workload(servers, topic, **settings) as workload:
        workload.wait_for_more(10)
        yield workload
