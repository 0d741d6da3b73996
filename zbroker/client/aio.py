"""The asyncio faces of `Producer` and `Admin`; that of `Consumer` is in `aioconsumer`.

Same cores, same threads and same arguments as the sync faces. What the client's thread has to tell a loop it collects
and hands over with one `call_soon_threadsafe` (`Handover`), so any event loop will do, and none per record. Never polls
a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from time import monotonic
from types import TracebackType
from typing import Any

from zbroker.client import flows, groupflows
from zbroker.client.admin import AdminBase, given, moment, names_of, places_of, target
from zbroker.client.bridge import Bridge
from zbroker.client.bulk import Bulk
from zbroker.client.delivery import Batch, Delivery, DeliveryGroup, OnDelivery, copied
from zbroker.client.exchange import Outcome
from zbroker.client.flows import Flow, Result, VoterAction
from zbroker.client.guard import check_timeout, ran_out
from zbroker.client.producer import Producer
from zbroker.client.records import (
    ClusterDescription,
    GroupDescription,
    GroupSummary,
    OffsetChange,
    RecordMetadata,
    TopicDescription,
)
from zbroker.errors import BufferFull, ZBrokerError


class AsyncDelivery:
    """What became of a record; `await` it for its `RecordMetadata`. Cancelling who waits never cancels the record."""

    __slots__ = ("_bridge", "_delivery")

    def __init__(self, bridge: Bridge, delivery: Delivery | DeliveryGroup) -> None:
        self._bridge = bridge
        self._delivery = delivery

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._delivery.done()

    def __await__(self) -> Generator[Any, None, Any]:
        for batch in self._batches():
            yield from _settled(self._bridge, batch).__await__()
        return self._delivery.result(0)

    def _batches(self) -> Iterable[Batch]:
        if isinstance(self._delivery, Delivery):
            return (self._delivery._batch,)
        return dict.fromkeys(part[0] for part in self._delivery._parts)

    def __repr__(self) -> str:
        return repr(self._delivery).replace("<Delivery", "<AsyncDelivery", 1)


async def _settled(bridge: Bridge, batch: Batch) -> None:
    """Waits until every record of a batch has its outcome."""
    pending = [batch]
    while pending:
        one = pending.pop()
        if not one.settled():
            future, complete = bridge.future()
            if one.when_settled(complete):
                await future
        if one.where is not None:
            pending += dict.fromkeys(child for child, _ in one.where)


class AsyncProducer:
    """`Producer` for asyncio: the same arguments. `await send(…)` waits for room and returns an `AsyncDelivery`."""

    def __init__(self, servers: str | Iterable[str] = "localhost:5550", **options: Any) -> None:
        self._bridge = Bridge()
        self._block = (
            0.0 if not options.pop("block_on_full", True) else options.pop("max_block", None)
        )
        options.pop("max_block", None)
        check_timeout(self._block, "max_block")
        self._producer = Producer(servers, block_on_full=False, **options)

    async def send(
        self,
        topic: str,
        value: Any,
        key: Any = None,
        *,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Any = (),
        on_delivery: OnDelivery | None = None,
    ) -> AsyncDelivery:
        """Puts a record on its way, once there is room. Arguments and errors as in `Producer.send`."""
        give_up = None if self._block is None else monotonic() + self._block
        while True:
            try:
                delivery = self._producer.send(
                    topic, value, key, partition=partition, timestamp=timestamp, headers=headers,
                    on_delivery=on_delivery,
                )  # fmt: skip
            except BufferFull:
                if not await self._room(give_up):
                    raise
                continue
            return AsyncDelivery(self._bridge, delivery)

    async def send_and_wait(
        self, topic: str, value: Any, key: Any = None, **options: Any
    ) -> RecordMetadata:
        """Puts a record on its way and waits for its place in the log."""
        metadata: RecordMetadata = await (await self.send(topic, value, key, **options))
        return metadata

    async def send_many(
        self, topic: str, values: Iterable[Any], keys: Iterable[Any] | None = None, **options: Any
    ) -> AsyncDelivery:
        """Puts many records on their way; awaiting the result gives the list of their metadata."""
        give_up = None if self._block is None else monotonic() + self._block
        bulk: Bulk = self._producer._bulk(
            topic, values, keys, options.pop("partition", None), options.pop("timestamp", None),
            options.pop("headers", ()), options.pop("on_delivery", None),
        )  # fmt: skip
        if options:
            raise TypeError(f"send_many takes no {', '.join(options)}")
        while not bulk.advance():
            if not await self._room(give_up):
                raise BufferFull(
                    "the buffer is full; details say how many records are on their way",
                    accepted=bulk.group.accepted(),
                )
        return AsyncDelivery(self._bridge, bulk.group)

    async def _room(self, give_up: float | None) -> bool:
        """Waits for room in the buffer; False when time is up."""
        rest = None if give_up is None else give_up - monotonic()
        if rest is not None and rest <= 0:
            return False
        future, complete = self._bridge.future()
        self._producer._accumulator.when_room(complete)
        try:
            await asyncio.wait_for(future, rest)
        except TimeoutError:
            return False
        return True

    async def flush(self, timeout: float | None = None) -> None:
        """Waits until everything sent so far is acknowledged or has failed (`WaitTimedOut`)."""
        check_timeout(timeout)
        self._producer._check_open()

        async def flushed() -> None:
            for batch in self._producer._accumulator.hurry_all():
                await _settled(self._bridge, batch)

        try:
            await asyncio.wait_for(flushed(), timeout)
        except TimeoutError:
            raise ran_out("the acknowledgement of everything sent", timeout) from None

    async def close(self, timeout: float | None = None) -> None:
        """Takes nothing new, sends and waits for what is on its way, then closes."""
        await asyncio.to_thread(self._producer.close, timeout)

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        await self.close()

    def __reduce__(self) -> Any:
        return self._producer.__reduce__()

    def __repr__(self) -> str:
        return repr(self._producer).replace("<Producer", "<AsyncProducer", 1)


class AsyncAdmin(AdminBase):
    """`Admin` for asyncio: the same calls, awaited."""

    async def create_topic(
        self, name: str, partitions: int | None = None, replicas: int | None = None, **settings: Any
    ) -> TopicDescription:
        """As `Admin.create_topic`."""
        return await self._run(flows.create_topic(name, given(partitions, replicas, settings)))

    async def alter_topic(self, name: str, **settings: Any) -> TopicDescription:
        """As `Admin.alter_topic`."""
        return await self._run(flows.alter_topic(name, settings))

    async def delete_topic(self, name: str) -> None:
        """As `Admin.delete_topic`."""
        await self._run(flows.delete_topic(name))

    async def topics(self, *, internal: bool = False) -> list[TopicDescription]:
        """As `Admin.topics`."""
        return await self._run(flows.topics(internal))

    async def describe_topic(self, name: str) -> TopicDescription:
        """As `Admin.describe_topic`."""
        return await self._run(flows.describe_topic(name))

    async def cluster(self) -> ClusterDescription:
        """As `Admin.cluster`."""
        return await self._run(flows.cluster())

    async def move_partitions(
        self, name: str, partition: int | None = None, to: Iterable[str] = ()
    ) -> TopicDescription:
        """As `Admin.move_partitions`."""
        return await self._run(flows.move_partitions(name, partition, names_of(to)))

    async def accept_loss(
        self, name: str, partition: int, node: str | None = None
    ) -> TopicDescription:
        """As `Admin.accept_loss`."""
        return await self._run(flows.accept_loss(name, partition, node))

    async def drain(self, node: str, undo: bool = False) -> int:
        """As `Admin.drain`."""
        return await self._run(flows.drain(node, undo))

    async def change_voters(self, node: str, action: VoterAction = "replace") -> tuple[str, ...]:
        """As `Admin.change_voters`."""
        return await self._run(flows.change_voters(node, action))

    async def delete_records(self, topic: str, partition: int, before: int) -> int:
        """As `Admin.delete_records`."""
        return await self._run(flows.delete_records(topic, partition, before))

    async def offsets(
        self, topic: str, at: Any = "latest", partitions: Iterable[int] | None = None
    ) -> dict[int, int]:
        """As `Admin.offsets`."""
        numbers = None if partitions is None else list(partitions)
        return await self._run(flows.offsets(topic, moment(at), numbers))

    async def groups(self) -> list[GroupSummary]:
        """As `Admin.groups`."""
        return await self._run(groupflows.groups())

    async def describe_group(self, name: str) -> GroupDescription:
        """As `Admin.describe_group`."""
        return await self._run(groupflows.describe_group(name))

    async def reset_group(
        self, name: str, to: Any, topics: Any = None, *, dry_run: bool = False
    ) -> list[OffsetChange]:
        """As `Admin.reset_group`."""
        flow = groupflows.reset_group(name, target(to), places_of(topics), dry_run)
        return await self._run(flow)

    async def delete_offsets(self, name: str, topics: Any) -> list[OffsetChange]:
        """As `Admin.delete_offsets`."""
        return await self._run(groupflows.delete_offsets(name, places_of(topics)))

    async def delete_group(self, name: str) -> None:
        """As `Admin.delete_group`."""
        await self._run(groupflows.delete_group(name))

    async def _run(self, flow: Flow[Result]) -> Result:
        self._check_open()
        bridge = Bridge()
        try:
            tasks = next(flow)
            while True:
                outcomes: list[Outcome | None] = []
                if tasks:
                    future, complete = bridge.future()
                    outcomes = self._submit(tasks, complete)
                    await future
                tasks = flow.send([one for one in outcomes if one is not None])
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except ZBrokerError as error:
            raise copied(error) from error.__cause__

    async def close(self) -> None:
        """Closes at once."""
        await asyncio.to_thread(self._stop)

    async def __aenter__(self) -> AsyncAdmin:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        await self.close()
