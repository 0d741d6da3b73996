"""Disk work on threads: the `Storage` port of a running node.

Owns a few threads a lane, and the wake-up of the reactor. A log never has two writes outstanding, so the threads of
the write lane need no order among themselves. Never decides anything: a request says what it does.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from queue import SimpleQueue

from zbroker.log.storage import Completion, Files, Lane, Request, execute

THREADS: dict[Lane, int] = {"write": 2, "flush": 2, "read": 2, "compaction": 1, "metadata": 1}
"""Threads a lane. Metadata have their own, so that they never queue behind data; compaction has one, for it is work."""


class ThreadedStorage:
    """Runs requests on threads; completions are picked up by the reactor when `fileno` is readable."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._done: deque[Completion] = deque()
        self._signalled = False
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._lanes: dict[Lane, SimpleQueue[Request | None]] = {
            lane: SimpleQueue() for lane in THREADS
        }
        self._threads = [
            threading.Thread(
                target=self._work, args=(lane,), name=f"storage-{lane}-{number}", daemon=True
            )
            for lane, count in THREADS.items()
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request) -> None:
        """Queues a request; never blocks."""
        self._lanes[request.lane].put(request)

    def fileno(self) -> int:
        """Readable while completions wait."""
        return self._reading

    def completions(self) -> deque[Completion]:
        """What is done since the last call, oldest first."""
        if not self._signalled:
            return deque()
        with contextlib.suppress(BlockingIOError):
            os.read(self._reading, 64)
        # In this order: a completion that comes after the flag is down raises it again.
        self._signalled = False
        done: deque[Completion] = deque()
        while self._done:
            done.append(self._done.popleft())
        return done

    def close(self) -> None:
        """Ends the threads once all that was queued is done."""
        for lane, count in THREADS.items():
            for _ in range(count):
                self._lanes[lane].put(None)
        for thread in self._threads:
            thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def _work(self, lane: Lane) -> None:
        queue = self._lanes[lane]
        while (request := queue.get()) is not None:
            self._done.append(execute(self._files, request))
            if not self._signalled:
                self._signalled = True
                with contextlib.suppress(BlockingIOError):
                    os.write(self._writing, b"\0")
