"""From the client's thread to an event loop: futures that any thread completes, and one call for what piles up."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable


class Handover:
    """From the client's thread to an event loop: what piles up until the loop runs goes over in one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._queue: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def post(self, action: Callable[[], None]) -> None:
        """Has the loop call `action`; from any thread."""
        self._queue.append(action)
        if not self._scheduled:
            self._scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._scheduled = False
        while self._queue:
            self._queue.popleft()()


class Bridge:
    """Futures of whichever loop runs, completed from the client's thread."""

    def __init__(self) -> None:
        self._handover: Handover | None = None

    def future(self) -> tuple[asyncio.Future[None], Callable[[], None]]:
        """A future, and what completes it from any thread."""
        loop = asyncio.get_running_loop()
        handover = self._handover
        if handover is None or handover.loop is not loop:
            handover = self._handover = Handover(loop)
        future: asyncio.Future[None] = loop.create_future()

        def complete() -> None:
            if not future.done():
                future.set_result(None)

        return future, lambda: handover.post(complete)
