"""What an admin client decides: whom to ask, and when to ask again.

Pure. A `Task` is one request that is repeated, unchanged but for its correlation number, until it is answered for good
or its time is up. Requests that change something carry a random id of their own, by which the cluster knows a repeated
one again, so a task for any server may go to several: first to the controller, where it is known, whose metadata are
never older than what it has answered.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from zbroker.client.coordinator import Coordinator
from zbroker.client.exchange import Call, Exchange, Outcome, Retries, moving
from zbroker.client.inquiry import PATIENCE, Inquiry
from zbroker.client.metadata import UNKNOWN_GRACE, Cluster
from zbroker.errors import NotLeader, NotReady, ServersUnreachable, ZBrokerError
from zbroker.protocol import messages
from zbroker.units import Address

ATTEMPT = 5.0
"""Seconds that one server has to answer."""
CHANGE_PATIENCE = 1.0
"""Seconds of silence after which a second server is asked for a change, which takes the disks of a majority."""


class OfGroup(msgspec.Struct, frozen=True):
    """Whoever coordinates a group."""

    group: str


Target = Address | tuple[str, int] | OfGroup
"""One server, the leader of a (topic, partition), or a group's coordinator."""


class Task:
    """One request of the application's.

    `target` is None for any server. `attempts`
    bounds how often it is tried; None is until the deadline. `timeout` is how many seconds a server has each time.
    """

    def __init__(
        self,
        message: messages.Request,
        target: Target | None = None,
        *,
        attempts: int | None = None,
        timeout: float = ATTEMPT,
    ) -> None:
        self.message = message
        self.target = target
        self.attempts = attempts
        self.timeout = timeout
        self.since = 0.0
        self.deadline = 0.0
        self.done: Callable[[Outcome], None] = lambda _outcome: None
        self.retry_at = 0.0
        self.call: Call | None = None
        self.inquiry: Inquiry | None = None
        self.last: ZBrokerError | None = None
        self.retries: Retries | None = None


class AdminCore:
    """Every decision of one admin client."""

    def __init__(self, exchange: Exchange, cluster: Cluster, random: Callable[[], float]) -> None:
        self.exchange = exchange
        self.tasks: dict[Task, None] = {}
        self._coordinators: dict[str, Coordinator] = {}
        self._cluster = cluster
        self._random = random

    def submit(self, task: Task, timeout: float, now: float) -> None:
        """Takes a task on."""
        task.since, task.deadline = now, now + timeout
        task.retries = Retries(self._random)
        self.tasks[task] = None
        if isinstance(task.target, tuple) and not isinstance(task.target, Address):
            self._cluster.want(task.target[0], now)
        if isinstance(task.target, OfGroup) and task.target.group not in self._coordinators:
            self._coordinators[task.target.group] = Coordinator(
                task.target.group, self.exchange, self._cluster, self._random
            )

    def step(self, now: float) -> float | None:
        """Does all that is due; answers when it wants to be called again."""
        wanted: list[float | None] = []
        groups = {task.target.group for task in self.tasks if isinstance(task.target, OfGroup)}
        for group in [one for one in self._coordinators if one not in groups]:
            self._coordinators.pop(group).stop()
        wanted += [coordinator.step(now) for coordinator in self._coordinators.values()]
        wanted += [self._advance(task, now) for task in list(self.tasks)]
        return min((due for due in wanted if due is not None), default=None)

    def fail_all(self, error: ZBrokerError) -> None:
        """The client closes."""
        for task in list(self.tasks):
            self._finish(task, error)

    def _advance(self, task: Task, now: float) -> float | None:
        if now >= task.deadline:
            self._drop(task)
            self._finish(task, self._too_late(task))
            return None
        if task.inquiry is not None:
            asks = task.inquiry.step(now)
            return task.deadline if asks is None else min(asks, task.deadline)
        if task.call is not None:
            return task.deadline
        if now < task.retry_at:
            return min(task.retry_at, task.deadline)
        if task.target is None:
            return self._inquire(task, now)
        address = self._address(task, task.target, now)
        if address is not None:
            task.call = self.exchange.request(
                address, task.message, lambda call, outcome, _body, at: self._answered(task, call, outcome, at),
                now=now, timeout=min(task.timeout, task.deadline - now),
            )  # fmt: skip
        return task.deadline

    def _inquire(self, task: Task, now: float) -> float:
        """Asks any server, the controller first."""
        cluster = self._cluster
        controller = cluster.nodes.get(cluster.controller or "")
        candidates = cluster.candidates()
        if controller is not None and controller not in cluster.failures:
            candidates.insert(0, controller)
        changes = hasattr(task.message, "request_id")

        def failed(address: Address, outcome: Outcome) -> Address | None:
            cluster.on_failure(address, outcome)
            if isinstance(outcome, NotLeader):
                return cluster.nodes.get(str(outcome.details.get("leader")))
            return None

        task.inquiry = Inquiry(
            self.exchange, task.message, candidates, timeout=min(task.timeout, task.deadline - now),
            patience=CHANGE_PATIENCE if changes else PATIENCE, accepts=self._is_final, failed=failed,
            done=lambda address, outcome, at: self._inquired(task, address, outcome, at),
        )  # fmt: skip
        task.inquiry.start(now)
        asks = task.inquiry.step(now)
        return task.deadline if asks is None else min(asks, task.deadline)

    def _is_final(self, outcome: Outcome) -> bool:
        if isinstance(outcome, messages.MetadataReply):
            return self._cluster.is_news(outcome)
        return not isinstance(outcome, ZBrokerError) or not outcome.retriable

    def _address(self, task: Task, target: Target, now: float) -> Address | None:
        if isinstance(target, Address):
            return target
        if isinstance(target, OfGroup):
            coordinator = self._coordinators[target.group]
            if coordinator.refused is not None:
                self._finish(task, coordinator.refused)
            return coordinator.address
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
            self._cluster.chase(now)
            return None
        return leader.address

    def _answered(self, task: Task, call: Call, outcome: Outcome, now: float) -> None:
        if task.call is not call:
            return
        task.call = None
        target = task.target
        if isinstance(target, OfGroup):
            if isinstance(outcome, ZBrokerError) and outcome.retriable:
                self._coordinators[target.group].lost(call.address, outcome, now)
        elif isinstance(outcome, NotLeader) and target and not isinstance(target, Address):
            self._cluster.on_not_leader(*target, outcome.details, now)
        self._ended(task, outcome, now)

    def _inquired(self, task: Task, address: Address, outcome: Outcome, now: float) -> None:
        if self._is_final(outcome):
            self._cluster.failures.pop(address, None)
        self._ended(task, outcome, now)

    def _ended(self, task: Task, outcome: Outcome, now: float) -> None:
        """An attempt has ended, at one server or at all of them."""
        task.inquiry = None
        if isinstance(outcome, messages.MetadataReply):
            if self._cluster.is_news(outcome):
                self._cluster.learn(outcome, now)
            else:
                outcome = NotReady("the servers that answer know an older state of the cluster")
        if not isinstance(outcome, ZBrokerError):
            self._finish(task, outcome)
            return
        task.last = outcome
        if task.attempts is not None:
            task.attempts -= 1
        unknown = outcome.code == "unknown_topic" and now >= task.since + UNKNOWN_GRACE
        if self._is_final(outcome) or task.attempts == 0 or unknown:
            self._finish(task, outcome)
            return
        assert task.retries is not None
        task.retry_at = now + task.retries.after(outcome)
        if moving(outcome) and task.target is not None:
            self._cluster.chase(now)

    def _drop(self, task: Task) -> None:
        if task.call is not None:
            self.exchange.abandon(task.call)
        if task.inquiry is not None:
            task.inquiry.abandon()
        task.call = task.inquiry = None

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
