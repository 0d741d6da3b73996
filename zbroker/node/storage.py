"""Disk work: the `Storage` port of a running node, on threads, and what is over at once on the reactor itself.

Owns a few threads a lane, and the wake-up of the reactor. A log never has two writes outstanding, so the threads of
the write lane need no order among themselves. Never decides anything: a request says what it does.

A small write into the operating system's cache takes 20 microseconds, and to hand it to a thread and back, 100. So what
is `quick` runs on the reactor, before it waits again, while the disk is at rest: nothing is being written, flushed or
compacted on a thread. Where that takes long all the same (somebody else's disk work, a journal that is full), what is
left of it goes to the threads, and so does everything for a second, or longer each time that it happens again soon.
What fails is a thread's to do again: taking back a write on a full disk needs a flush.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from zbroker.log.storage import Completion, Files, Lane, Request, execute

THREADS: dict[Lane, int] = {"write": 2, "flush": 2, "read": 2, "compaction": 1, "metadata": 1}
"""Threads a lane. Metadata have their own, so that they never queue behind data; compaction has one, for it is work."""
LONG_S = 0.01
"""Seconds that the quick requests of a turn may take together: more than it takes to be interrupted now and then."""
REST_S, REST_MAX_S = 1.0, 60.0
"""Seconds for which the threads do quick requests after some that took long: at first, and at most."""


class ThreadedStorage:
    """Runs requests; completions are picked up by the reactor, whose thread alone calls this."""

    def __init__(self, files: Files, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: seconds, by which quick requests are timed.
        """
        self._files = files
        self._clock = clock
        self._quick: deque[Request] = deque()
        self._handed = 0
        """Requests on threads that use the disk: all but reads."""
        self._rest, self._rests_until = REST_S, 0.0
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
        if not self._handed and request.quick and self._clock() >= self._rests_until:
            self._quick.append(request)
        else:
            self._hand(request)

    def fileno(self) -> int:
        """Readable while completions of the threads wait."""
        return self._reading

    def run_quick(self) -> deque[Completion]:
        """Does what is quick, oldest first; to be called until it does nothing before the reactor waits."""
        done: deque[Completion] = deque()
        if not self._quick:
            return done
        began = self._clock()
        while self._quick:
            request = self._quick.popleft()
            if self._handed or self._clock() - began > LONG_S:
                self._hand(request)
                continue
            try:
                request.attempt(self._files)
            except OSError:
                self._hand(request)
            else:
                done.append(Completion(request))
        self._took(began, self._clock())
        return done

    def completions(self) -> deque[Completion]:
        """What is done on threads since the last call, oldest first; to be called when `fileno` is readable."""
        done: deque[Completion] = deque()
        try:
            os.read(self._reading, 64)
        except BlockingIOError:
            return done
        # In this order: a completion that comes after the flag is down raises it again.
        self._signalled = False
        while self._done:
            completion = self._done.popleft()
            self._handed -= completion.request.lane != "read"
            done.append(completion)
        return done

    def close(self) -> None:
        """Ends the threads once all that was queued is done."""
        self.run_quick()
        for lane, count in THREADS.items():
            for _ in range(count):
                self._lanes[lane].put(None)
        for thread in self._threads:
            thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def _hand(self, request: Request) -> None:
        """Gives a request to a thread."""
        self._handed += request.lane != "read"
        self._lanes[request.lane].put(request)

    def _took(self, began: float, ended: float) -> None:
        """After a turn that took long the reactor keeps away from the disk, longer if that was not the first."""
        if ended - began > LONG_S:
            recent = began < self._rests_until + 10 * self._rest
            self._rest = min(2 * self._rest, REST_MAX_S) if recent else REST_S
            self._rests_until = ended + self._rest

    def _work(self, lane: Lane) -> None:
        queue = self._lanes[lane]
        while (request := queue.get()) is not None:
            self._done.append(execute(self._files, request))
            if not self._signalled:
                self._signalled = True
                with contextlib.suppress(BlockingIOError):
                    os.write(self._writing, b"\0")
