"""What every client object has in common: it refuses pickling and use after a fork, waits so that Ctrl-C works, and
is closed when the interpreter exits.

Owns the list of open clients of this process. Never touches a socket.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, NoReturn

from zbroker.errors import ClientClosed, InvalidRequest, WaitTimedOut

_SLICE = 0.1 if sys.platform == "win32" else threading.TIMEOUT_MAX
"""Longest single wait in seconds: on Windows a wait for a lock is deaf to Ctrl-C until it ends."""

FORKED = "the process forked after this client was opened; a child process opens its own clients"


class NotPicklable(InvalidRequest, TypeError):
    """A client was pickled, or sent to another process."""


class Guarded:
    """Base of the clients' faces: pickling raises a sentence, a fork marks the copy in the child as closed."""

    def __init__(self) -> None:
        self._refusal: str | None = None
        _open_clients.add(self)

    def _after_fork(self) -> None:
        """In the child: nothing of the parent's threads and sockets may be touched any more."""
        self._refusal = FORKED

    def _at_exit(self) -> None:
        """The interpreter exits and the client is still open."""

    def _forget(self) -> None:
        _open_clients.discard(self)

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise ClientClosed(self._refusal)

    def __reduce__(self) -> NoReturn:
        raise NotPicklable(
            f"a {type(self).__name__} holds sockets and a thread and cannot be pickled; "
            "pass its servers and options, and open another one over there"
        )


_open_clients: weakref.WeakSet[Guarded] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_open_clients):
        client._after_fork()


def _at_exit() -> None:
    for client in list(_open_clients):
        client._at_exit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def wait_event(event: threading.Event, timeout: float | None) -> bool:
    """Waits for an event; seconds, None for ever. Ctrl-C interrupts it everywhere."""
    if timeout is None:
        while not event.wait(_SLICE):
            pass
        return True
    deadline = monotonic() + timeout
    while True:
        rest = deadline - monotonic()
        if event.wait(max(0.0, min(rest, _SLICE))):
            return True
        if rest <= _SLICE:
            return False


def check_timeout(timeout: float | None, name: str = "timeout") -> None:
    """Refuses a wait that is not a number of seconds (`InvalidRequest`)."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidRequest(
            f"{name} is a number of seconds, 0 or more, or None; found {timeout!r}"
        )


def ran_out(what: str, timeout: float | None) -> WaitTimedOut:
    """The error of a local wait."""
    return WaitTimedOut(
        f"{what} did not happen within {timeout:g} s" if timeout is not None else what
    )


def option(condition: bool, sentence: str) -> None:
    """Refuses a constructor's argument (`InvalidRequest`) unless the condition holds."""
    if not condition:
        raise InvalidRequest(sentence)


Callback = Callable[..., Any]
