"""`Producer`: records into topics, from any thread.

The face: it checks arguments, keeps the per-record path short, and waits where the caller asked it to. What is
decided stands in `producing`, what is buffered in `accumulator`, and the sockets belong to `connection`.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import weakref
from collections.abc import Iterable, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Literal

from zbroker.client.accumulator import Accumulator
from zbroker.client.bulk import Bulk
from zbroker.client.connection import Connection
from zbroker.client.delivery import Batch, Delivery, DeliveryGroup, OnDelivery, Pen
from zbroker.client.exchange import Body, Exchange
from zbroker.client.filling import Keyed
from zbroker.client.guard import Guarded, check_timeout, option, ran_out
from zbroker.client.metadata import BATCH_MAX, Cluster
from zbroker.client.partitioner import crc32
from zbroker.client.producing import ProducerCore, ProducerSettings
from zbroker.client.serializers import Serializer, checked_headers, serializer, to_bytes
from zbroker.errors import BufferFull, InvalidRequest, InvalidTopic, ZBrokerError
from zbroker.protocol import messages
from zbroker.protocol.compression import CODECS, Compression
from zbroker.units import Address, UnitError, parse_servers

logger = logging.getLogger("zbroker.client")

BATCH_BYTES = 512 * 1024
BUFFER_BYTES = 64 << 20
EXIT_PATIENCE = 5.0
"""Seconds that a producer which nobody closed has to empty its buffer when the interpreter exits."""
TIMESTAMP_MAX = 2**62
TIMEOUT_MAX = 1_000_000
"""Seconds that a timeout may be: it goes over the wire, and into what waits for sockets, in milliseconds."""


class ProducerMachine:
    """The producer's core as its thread drives it."""

    def __init__(
        self, core: ProducerCore, cluster: Cluster, exchange: Exchange, accumulator: Accumulator
    ) -> None:
        self.core = core
        self.cluster = cluster
        self.exchange = exchange
        self._accumulator = accumulator

    def step(self, now: float) -> float | None:
        """Decides what is due."""
        wanted = self.core.step(now)
        asks = self.cluster.step(now)
        return wanted if asks is None else asks if wanted is None else min(asks, wanted)

    def on_push(self, _address: Address, _push: messages.Push, _body: Body, _now: float) -> None:
        """A producer subscribes to no partition."""

    def on_change(self, change: messages.ClusterChange, now: float) -> None:
        """A node announced new metadata."""
        self.cluster.on_change(change, now)

    def after_step(self) -> None:
        """Finishes what has ended and runs the callbacks."""
        finished = self.core.take_finished()
        if finished:
            self._accumulator.finish(finished)
            self._accumulator.calling_back = threading.get_ident()
            for batch in finished:
                if batch.callbacks:
                    run_callbacks(batch)
            self._accumulator.calling_back = 0

    def on_failure(self, error: ZBrokerError) -> None:
        """The thread ends."""
        self._accumulator.refuse(str(error))
        self.core.fail_all(str(error))


def run_callbacks(batch: Batch) -> None:
    """Tells each record's function what became of it."""
    for index, function in batch.callbacks or ():
        try:
            if batch.error is not None:
                function(None, batch.error)
            else:
                function(batch.metadata(index), None)
        except BaseException:  # SystemExit too: it would end a thread that others need
            logger.exception("on_delivery %r failed; the record itself is as it was", function)
    batch.callbacks = None


class Producer(Guarded):
    """Sends records to topics: batched, idempotent, retried until `delivery_timeout`. Thread-safe.

    Args:
        servers: `"host:port"`, several with commas or as a list: any of the cluster's nodes.
        acks: `"all"`: acknowledged once committed, without duplicates or reordering, whatever is retried;
            `"leader"`: once in the leader's log, a retry may double; `"none"`: once handed to the socket.
        linger_ms: how long a batch waits for more records, milliseconds; less than `delivery_timeout`. A batch goes
            earlier when it is full, and when somebody waits for it (`Delivery.result`, `flush`); later while five are
            unacknowledged.
        batch_bytes: about how large a batch gets; a larger record travels alone.
        compression: `"none"`, `"lz4"` or `"zstd"`, a batch as a whole.
        buffer_bytes: how much may wait to be sent and acknowledged; then `send` waits for room.
        delivery_timeout: seconds from `send` until a record is given up.
        request_timeout: seconds that a node has to answer; then the socket is opened anew and the request repeated.
        block_on_full: False has `send` raise `BufferFull` instead of waiting for room.
        max_block: seconds that `send` waits for room at most, None for as long as it takes.
        serializer: for values: `"msgpack"`, `"json"` or a function; None passes through.
        key_serializer: the same for keys.
        client_id: a name for this client's thread and log lines.

    Raises:
        InvalidRequest: an argument is wrong. Nothing touches the network before the first record.
    """

    def __init__(
        self,
        servers: str | Iterable[str] = "localhost:5550",
        *,
        acks: Literal["all", "leader", "none"] = "all",
        linger_ms: float = 5,
        batch_bytes: int = BATCH_BYTES,
        compression: Compression = "none",
        buffer_bytes: int = BUFFER_BYTES,
        delivery_timeout: float = 120.0,
        request_timeout: float = 10.0,
        block_on_full: bool = True,
        max_block: float | None = None,
        serializer: Serializer = None,
        key_serializer: Serializer = None,
        client_id: str = "zbroker-producer",
    ) -> None:
        option(acks in ("all", "leader", "none"), f"acks is all, leader or none, not {acks!r}")
        option(compression in CODECS, f"compression is {', '.join(CODECS)}, not {compression!r}")
        option(
            _is_int(batch_bytes) and batch_bytes >= 1,
            f"batch_bytes is 1 or more, not {batch_bytes!r}",
        )
        option(
            _is_int(buffer_bytes) and buffer_bytes >= batch_bytes,
            f"buffer_bytes is at least batch_bytes ({batch_bytes}), not {buffer_bytes!r}",
        )
        for name, seconds in (
            ("delivery_timeout", delivery_timeout),
            ("request_timeout", request_timeout),
        ):
            option(
                _is_number(seconds) and 0 < seconds <= TIMEOUT_MAX,
                f"{name} is more than 0 seconds and at most {TIMEOUT_MAX}, not {seconds!r}",
            )
        option(
            _is_number(linger_ms) and 0 <= linger_ms < delivery_timeout * 1000,
            f"linger_ms is 0 or more, and less than delivery_timeout ({delivery_timeout} s), not {linger_ms!r}",
        )
        check_timeout(max_block, "max_block")
        super().__init__()
        self._init(
            servers_of(servers), acks, linger_ms / 1000, batch_bytes, CODECS.index(compression), buffer_bytes,
            delivery_timeout, request_timeout, client_id,
        )  # fmt: skip
        self._block = 0.0 if not block_on_full else max_block
        self._delivery_timeout = delivery_timeout
        self._serialize = _serializer(serializer, "value")
        self._serialize_key = _serializer(key_serializer, "key")
        plain = self._serialize is None and self._serialize_key is None
        self._lanes = self._accumulator.fast if plain else {}
        self._pens: dict[str, Pen] = self._accumulator.pens if plain else {}

    def _init(
        self, servers: tuple[Address, ...], acks: Literal["all", "leader", "none"], linger: float, batch_bytes: int,
        codec: int, buffer_bytes: int, delivery_timeout: float, request_timeout: float, client_id: str,
    ) -> None:  # fmt: skip
        chance = random.Random().random
        self._accumulator = accumulator = Accumulator(
            batch_bytes=batch_bytes,
            buffer_bytes=buffer_bytes,
            linger=linger,
            delivery_timeout=delivery_timeout,
            record_max=BATCH_MAX,
            first_partition=int(chance() * 4096),
        )
        exchange = Exchange()
        cluster = Cluster(servers, exchange, chance)
        settings = ProducerSettings(acks=acks, codec=codec, request_timeout=request_timeout)
        core = ProducerCore(settings, accumulator, exchange, cluster, chance)
        machine = ProducerMachine(core, cluster, exchange, accumulator)
        self._connection = connection = Connection(machine, client_id)
        accumulator.wake = connection.wake
        self._finalizer = weakref.finalize(self, connection.stop_soon)
        self._finalizer.atexit = False

    # Sending ---

    def send(
        self,
        topic: str,
        value: Any,
        key: Any = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Any = (),
        on_delivery: OnDelivery | None = None,
    ) -> Delivery:
        """Puts a record on its way. (What follows the key is meant to be named; that it need not be makes calls quick.)

        Args:
            topic: its name; topics are not created by sending to them.
            value: bytes, a str (its UTF-8) or None (a tombstone); anything that the serializer takes.
            key: bytes, a str or None; records with the same key go to the same partition, in order.
            partition: a partition's number, instead of the key's.
            timestamp: milliseconds since the epoch; now, if left out.
            headers: (name, bytes or None) pairs, or a dict.
            on_delivery: called as `on_delivery(metadata, error)` on the client's thread once the outcome is known,
                one of the two being None. It must not block; `send` raises `BufferFull` there rather than wait.

        Raises:
            BufferFull: the buffer is full, and `block_on_full` is False or `max_block` has passed; or this is an
                `on_delivery`, or a signal's handler, for which the client would wait in turn.
            MessageTooLarge, UnknownPartition, InvalidTopic, SerializationError: as far as it can be known at once.
            ClientClosed: the producer was closed, or the process has forked.
        """
        if partition is None and timestamp is None and on_delivery is None and not headers:
            try:
                if key is None:
                    delivery = self._pens[topic](value)
                else:
                    lane = self._lanes[topic]
                    delivery = lane.pens[crc32(key) % lane.count](Keyed(key, value))
                if delivery is not None:
                    return delivery
            except StopIteration as end:
                if end.value is not None and self._accumulator.holds(end.value):
                    return end.value  # type: ignore[no-any-return]
            except (KeyError, TypeError, ValueError):
                pass  # the topic is new, the key is no bytes, or another thread is at it
        return self._send(
            topic, value, key, partition, timestamp, headers, on_delivery, self._block
        )

    def send_many(
        self,
        topic: str,
        values: Iterable[Any],
        keys: Iterable[Any] | None = None,
        *,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Any = (),
        on_delivery: OnDelivery | None = None,
    ) -> DeliveryGroup:
        """Puts many records on their way, which costs less than as many `send`s. Arguments as there.

        Returns:
            A delivery of them all: `result()` is the list of their metadata, in the order of the values.

        Raises:
            BufferFull: the buffer is full; `details["accepted"]` of the records are on their way.
        """
        bulk = self._bulk(topic, values, keys, partition, timestamp, headers, on_delivery)
        give_up = None if self._block is None else monotonic() + self._block
        while not bulk.advance():
            try:
                self._accumulator.wait_for_room(give_up)
            except BufferFull as error:
                error.details["accepted"] = bulk.group.accepted()
                raise
        return bulk.group

    def _bulk(
        self, topic: str, values: Iterable[Any], keys: Iterable[Any] | None, partition: int | None,
        timestamp: int | None, headers: Any, on_delivery: OnDelivery | None,
    ) -> Bulk:  # fmt: skip
        self._check_open()
        check_place(topic, partition, timestamp)
        self._connection.start()
        return Bulk(
            self._accumulator, topic,
            _column(values, self._serialize, "value"),
            None if keys is None else _column(keys, self._serialize_key, "key"),
            partition, timestamp, checked_headers(headers), on_delivery,
        )  # fmt: skip

    def _send(
        self, topic: str, value: Any, key: Any, partition: int | None, timestamp: int | None, headers: Any,
        on_delivery: OnDelivery | None, block: float | None,
    ) -> Delivery:  # fmt: skip
        """The way that knows every case; see `send`."""
        self._check_open()
        check_place(topic, partition, timestamp)
        value = to_bytes(value) if self._serialize is None else self._serialize(value)
        key = to_bytes(key, "key") if self._serialize_key is None else self._serialize_key(key)
        self._connection.start()
        return self._accumulator.append(
            topic,
            value,
            key,
            partition,
            timestamp,
            checked_headers(headers),
            on_delivery,
            block=block,
        )

    # Waiting ---

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything sent so far is acknowledged or has failed; lingers no more.

        Raises:
            WaitTimedOut: `timeout` seconds were not enough; what is on its way goes on.
            InvalidRequest: this is an `on_delivery`, or a signal's handler, for which the client would wait in turn.
        """
        check_timeout(timeout)
        self._check_open()
        self._flush(timeout)

    def _flush(self, timeout: float | None) -> None:
        deadline = None if timeout is None else monotonic() + timeout
        pending = self._accumulator.hurry_all()
        while pending:
            batch = pending.pop()
            if not batch.wait(None if deadline is None else deadline - monotonic()):
                raise ran_out("the acknowledgement of everything sent", timeout)
            if batch.where is not None:
                pending += dict.fromkeys(child for child, _ in batch.where)

    def close(self, timeout: float | None = None) -> None:
        """Takes nothing new, sends and waits for what is on its way, then closes. Again: does nothing.

        Args:
            timeout: seconds to wait at most; `delivery_timeout` if left out. What is then on its way fails with
                `ClientClosed`.

        Raises:
            InvalidRequest: this is an `on_delivery`, or a signal's handler, for which the client would wait in turn.
        """
        check_timeout(timeout)
        if self._refusal is not None:
            return
        if self._connection.started:
            self._accumulator.check_wait()
        self._refusal = "the producer was closed"
        self._accumulator.refuse(self._refusal)
        try:
            if self._connection.started:
                self._flush(self._delivery_timeout + 1 if timeout is None else timeout)
        except ZBrokerError:
            pass
        finally:
            self._forget()
            self._finalizer.detach()
            self._connection.stop(linger=1.0)

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' closed' if self._refusal else ''}>"

    def _after_fork(self) -> None:
        super()._after_fork()
        self._lanes, self._pens = {}, {}

    def _at_exit(self) -> None:
        with contextlib.suppress(Exception):
            self.close(EXIT_PATIENCE)


def servers_of(servers: str | Iterable[str]) -> tuple[Address, ...]:
    """The servers of a constructor's argument (`InvalidRequest` says what is wrong with it)."""
    try:
        return parse_servers(servers)
    except (UnitError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"servers: {error}") from None


def check_place(topic: str, partition: int | None, timestamp: int | None) -> None:
    """What can be known at once of a record's place and time."""
    if not isinstance(topic, str) or not topic or len(topic) > 249:
        raise InvalidTopic(f"a topic is a name of 1 to 249 characters, not {topic!r}")
    if partition is not None and (not _is_int(partition) or partition < 0):
        raise InvalidRequest(f"a partition is a number from 0 on, not {partition!r}")
    if timestamp is not None and (not _is_int(timestamp) or not 0 <= timestamp < TIMESTAMP_MAX):
        raise InvalidRequest(
            f"a timestamp is milliseconds since the epoch, 0 or more, not {timestamp!r}"
        )


def _column(items: Iterable[Any], serialize: Any, what: str) -> Sequence[bytes | None]:
    column = items if isinstance(items, list | tuple) else list(items)
    if serialize is not None:
        return [serialize(item) for item in column]
    if set(map(type, column)) <= {bytes}:
        return column
    return [to_bytes(item, what) for item in column]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_serializer = serializer
