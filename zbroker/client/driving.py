"""A consumer's cores as its thread drives them."""

from __future__ import annotations

from collections.abc import Callable

from zbroker.client.consuming import ConsumerCore
from zbroker.client.exchange import Body, Exchange
from zbroker.client.grouping import GroupCore
from zbroker.client.metadata import Cluster
from zbroker.errors import ZBrokerError
from zbroker.protocol import messages
from zbroker.units import Address


class ConsumerMachine:
    """What a consumer's thread calls (`connection.Machine`)."""

    def __init__(
        self,
        core: ConsumerCore,
        cluster: Cluster,
        exchange: Exchange,
        group: GroupCore | None = None,
    ) -> None:
        self.core = core
        self.cluster = cluster
        self.exchange = exchange
        self.group = group
        self.signal: Callable[[], None] = lambda: None
        """Tells the application's thread that something is ready."""
        self.failure: ZBrokerError | None = None

    def step(self, now: float) -> float | None:
        """Decides what is due."""
        wanted = [] if self.group is None else [self.group.step(now)]
        wanted += [self.core.step(now), self.cluster.step(now)]
        return min((due for due in wanted if due is not None), default=None)

    def on_push(self, address: Address, push: messages.Push, body: Body, now: float) -> None:
        """A batch or a beacon."""
        self.core.on_push(push, body, now, address)

    def on_change(self, change: messages.ClusterChange, now: float) -> None:
        """A node announced new metadata."""
        self.cluster.on_change(change, now)

    def after_step(self) -> None:
        """Wakes the application where there is something for it."""
        if self.core.ready or self.core.ended or (self.group is not None and self.group.has_news()):
            self.signal()

    def on_failure(self, error: ZBrokerError) -> None:
        """The thread ends."""
        self.failure = error
        if self.group is not None:
            self.group.stop(error)
        self.signal()
