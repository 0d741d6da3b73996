"""`AsyncConsumer`: records out of topics, for one task at a time.

The face: it waits without holding up its loop, and calls back. What it hands over, and what of it is done, is
`handing`'s. Any event loop will do; never polls a socket.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from time import monotonic
from types import TracebackType
from typing import Any

from zbroker.client.bridge import Bridge
from zbroker.client.custody import Custody, Flow
from zbroker.client.delivery import copied
from zbroker.client.guard import check_timeout, option
from zbroker.client.handing import CLOSE_TIMEOUT, MAX_RECORDS, ConsumerBase
from zbroker.client.partaking import committed_offsets
from zbroker.errors import ClientClosed

CHECK_EVERY = 0.25
"""Seconds after which it is looked whether the client's thread, which owes an answer, still runs."""
TURN = 0.002
"""Seconds for which calls that find records hand them over without letting the loop run its other tasks."""


class AsyncConsumer(ConsumerBase):
    """`Consumer` for asyncio: the same arguments, `async for` and `await poll(…)`. For one task at a time.

    `on_assigned`, `on_revoked` and `on_lost` may be coroutine functions. In a group, a handler that keeps the loop busy
    does not keep heartbeats from being sent: they are the client's thread's.
    """

    def _prepare(self) -> None:
        self._bridge = Bridge()
        self._waiter: Callable[[], None] | None = None
        self._give_way_at = 0.0
        self._closing = False
        me = weakref.ref(self)

        def signal() -> None:
            consumer = me()
            if consumer is not None:
                consumer._signal()

        # The client's thread does not hold the consumer: one that nobody else holds is collected, and its thread ends.
        self._machine.signal = signal

    def _caller(self) -> object:
        return asyncio.current_task()

    def _signal(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter()

    async def poll(self, timeout: float | None = 1.0, max_records: int = MAX_RECORDS) -> Any:
        """As `Consumer.poll`. A cancelled `poll` hands nothing over."""
        check_timeout(timeout)
        option(max_records >= 1, f"max_records is 1 or more, not {max_records!r}")
        await self._give_way()
        try:
            self._begin()
            await self._hear()
            found = self._take(max_records)
            deadline = None if timeout is None else monotonic() + timeout
            while not found and await self._wait(deadline):
                await self._hear()
                found = self._take(max_records)
            return found
        finally:
            self._exit()

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Records, for ever; ends at the end with `until_end`, after `wakeup()` and after `close()`."""
        self._check_open()
        try:
            while True:
                await self._give_way()
                try:
                    self._begin()
                    await self._hear()
                    while not self._has_batch():
                        if not await self._wait(None):
                            return
                        await self._hear()
                finally:
                    self._exit()
                custody = self._custody
                if custody is None:
                    for record in self._cursor:
                        yield record
                    continue
                self._start_flow(custody)
                for record in self._cursor:
                    yield record
                    if custody.interrupted:
                        break
        except ClientClosed:
            return

    def _start_flow(self, custody: Custody) -> None:
        assert self._current is not None
        place = self._current.place
        custody.flow = Flow(place, self._records, self._cursor, self._epochs[place])

    async def _give_way(self) -> None:
        """Lets the loop run its other tasks now and then, where a call would not wait: nothing is taken yet."""
        left = self._cursor.__length_hint__()  # type: ignore[attr-defined]
        if (left or self._core.ready) and monotonic() >= self._give_way_at:
            await asyncio.sleep(0)
            self._give_way_at = monotonic() + TURN

    async def _wait(self, deadline: float | None) -> bool:
        while True:
            future, self._waiter = self._bridge.future()
            self._check_running()
            if self._has_more():
                return True
            if self._woken:
                self._woken = False
                return False
            if self._until_end and self._core.ended:
                return False
            rest = None if deadline is None else deadline - monotonic()
            if rest is not None and rest <= 0:
                return False
            try:
                await asyncio.wait_for(future, rest)
            except TimeoutError:
                return False

    async def _hear(self) -> None:
        for news in self._news():
            for answer in self._heard(news):
                if inspect.isawaitable(answer):
                    await answer

    async def commit(self, offsets: Any = None, timeout: float | None = None) -> None:
        """As `Consumer.commit`."""
        check_timeout(timeout)
        if self._custody is not None and self._custody.error is not None:
            await self._hear()
        error = await self._answer(lambda done: self._commit(offsets, timeout, done))
        if error is not None:
            raise copied(error)

    async def committed(self) -> dict[tuple[str, int], int]:
        """As `Consumer.committed`."""
        return committed_offsets(await self._answer(self._ask_committed))

    async def _answer(self, ask: Callable[[Callable[[Any], None]], None]) -> Any:
        """What the client's thread answers, which it does in time for as long as it runs."""
        answer: list[Any] = []
        future, complete = self._bridge.future()

        def done(outcome: Any) -> None:
            answer.append(outcome)
            complete()

        ask(done)
        while not answer:
            await asyncio.wait([future], timeout=CHECK_EVERY)
            if not answer:
                self._check_running()
        return answer[0]

    async def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """As `Consumer.close`; counts as a call in the task that made the last one."""
        check_timeout(timeout)
        if self._refusal is None and not self._closing:
            self._closing = True
            try:
                await self._leave(timeout)
            finally:
                await asyncio.to_thread(self._stop)

    async def _leave(self, timeout: float) -> None:
        custody = self._custody
        if custody is None or not self._connection.running:
            return
        future, complete = self._bridge.future()
        try:
            if self._owner is self._caller():
                if sys.exc_info()[0] is None:
                    self._finish_hand(custody)
                revoked = self._callbacks["revoked"]
                places = sorted({*custody.owned, *custody.leaving})
                if revoked is not None and places:
                    answer = revoked(places)
                    if inspect.isawaitable(answer):
                        await answer
        finally:
            if self._start_leaving(complete, timeout):
                await asyncio.wait([future], timeout=timeout)

    async def __aenter__(self) -> AsyncConsumer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        await self.close()
