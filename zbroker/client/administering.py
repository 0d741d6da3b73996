"""What an admin client decides: whom to ask, and when to ask again.

Pure. A `Task` is one request that is repeated, unchanged but for its correlation number, until it is answered for good
or its time is up. Requests that change something carry a random id of their own, by which the cluster knows a repeated
one again.
"""

from __future__ import annotations

from collections.abc import Callable

from zbroker.client.exchange import Backoff, Call, Exchange, Outcome
from zbroker.client.metadata import Cluster
from zbroker.errors import NotLeader, ServersUnreachable, ZBrokerError
from zbroker.protocol import messages
from zbroker.units import Address

ATTEMPT = 5.0
"""Seconds that one server has to answer before another is asked."""


class Task:
    """One request of the application's.

    `target` is None for any server, an address for that one alone, or (topic, partition) for its leader. `attempts`
    bounds how often it is tried; None is until the deadline.
    """

    def __init__(
        self,
        message: messages.Request,
        target: Address | tuple[str, int] | None = None,
        *,
        attempts: int | None = None,
    ) -> None:
        self.message = message
        self.target = target
        self.attempts = attempts
        self.deadline = 0.0
        self.done: Callable[[Outcome], None] = lambda _outcome: None
        self.turn = 0
        self.retry_at = 0.0
        self.call: Call | None = None
        self.last: ZBrokerError | None = None
        self.backoff: Backoff | None = None


class AdminCore:
    """Every decision of one admin client."""

    def __init__(self, exchange: Exchange, cluster: Cluster, random: Callable[[], float]) -> None:
        self.exchange = exchange
        self.tasks: dict[Task, None] = {}
        self._cluster = cluster
        self._random = random

    def submit(self, task: Task, timeout: float, now: float) -> None:
        """Takes a task on."""
        task.deadline = now + timeout
        task.backoff = Backoff(self._random)
        self.tasks[task] = None
        if isinstance(task.target, tuple) and not isinstance(task.target, Address):
            self._cluster.want(task.target[0], now)

    def step(self, now: float) -> float | None:
        """Does all that is due; answers when it wants to be called again."""
        wanted: float | None = None
        for task in list(self.tasks):
            due = self._advance(task, now)
            if due is not None and (wanted is None or due < wanted):
                wanted = due
        return wanted

    def fail_all(self, error: ZBrokerError) -> None:
        """The client closes."""
        for task in list(self.tasks):
            self._finish(task, error)

    def _advance(self, task: Task, now: float) -> float | None:
        if now >= task.deadline:
            if task.call is not None:
                self.exchange.abandon(task.call)
            self._finish(task, self._too_late(task))
            return None
        if task.call is not None:
            return task.deadline
        if now < task.retry_at:
            return min(task.retry_at, task.deadline)
        address = self._address(task, now)
        if address is None:
            return task.deadline
        task.call = self.exchange.request(
            address, task.message, lambda call, outcome, _body, at: self._answered(task, call, outcome, at),
            now=now, timeout=min(ATTEMPT, task.deadline - now),
        )  # fmt: skip
        return task.deadline

    def _address(self, task: Task, now: float) -> Address | None:
        target = task.target
        if isinstance(target, Address):
            return target
        if target is None:
            known = (*self._cluster.servers, *self._cluster.nodes.values())
            candidates = list(dict.fromkeys(known))
            return candidates[task.turn % len(candidates)]
        topic, partition = target
        error = self._cluster.missing.get(topic)
        if error is not None:
            self._finish(task, error)
            return None
        leader = self._cluster.leader(topic, partition)
        if leader is None and topic in self._cluster.topics:
            task.last = ZBrokerError(f"topic {topic!r} has no partition {partition}")
            self._finish(task, task.last)
            return None
        if leader is None or leader.address is None:
            self._cluster.refresh(now, 0.1)
            return None
        return leader.address

    def _answered(self, task: Task, call: Call, outcome: Outcome, now: float) -> None:
        if task.call is not call:
            return
        task.call = None
        if not isinstance(outcome, ZBrokerError):
            self._finish(task, outcome)
            return
        task.last = outcome
        if task.attempts is not None:
            task.attempts -= 1
        if not outcome.retriable or task.attempts == 0 or outcome.code == "unknown_topic":
            self._finish(task, outcome)
            return
        assert task.backoff is not None
        task.turn += 1
        task.retry_at = now + task.backoff.next()
        if outcome.hint == "refresh" or isinstance(outcome, NotLeader):
            self._cluster.refresh(now)

    def _too_late(self, task: Task) -> ZBrokerError:
        last = task.last
        if last is not None and last.code not in ("unreachable", "timed_out"):
            return last
        if last is not None:
            why = str(last)
        else:
            servers = ", ".join(map(str, self._cluster.servers))
            why = self._cluster.unreachable() if self._cluster.failures else f"{servers}: no answer"
        error = ServersUnreachable(
            f"no server answered in time ({why}); is the node running, and are these its host and port?",
            outcome_unknown=last is not None and last.outcome_unknown,
            servers=[str(server) for server in self._cluster.servers],
        )
        error.__cause__ = last
        return error

    def _finish(self, task: Task, outcome: Outcome) -> None:
        self.tasks.pop(task, None)
        task.done(outcome)
