"""Where a group's coordinator is: asked of any node, and again when it is no more.

Owns the address and the pauses between attempts; who talks to the coordinator tells how that went. Pure, and never
tells the application: a coordinator that nobody knows is looked for as long as it takes.

====================================== ==============================================
what happens                           what follows
====================================== ==============================================
it is not known                        any node is asked, one after the other
a request to it fails (`lost`)         it is asked for, after a pause that grows; where
                                       the answer named another node, that is tried first
its node is reported dead              it is asked for at once
a request to it is answered (`proven`) the next pause is a short one
====================================== ==============================================
"""

from __future__ import annotations

from collections.abc import Callable

from zbroker.client.exchange import Exchange, Outcome, Retries
from zbroker.client.inquiry import Inquiry
from zbroker.client.metadata import Cluster
from zbroker.errors import NotCoordinator, RequestTimedOut, ServersUnreachable, ZBrokerError
from zbroker.protocol import messages
from zbroker.units import Address

ATTEMPT = 12.0
"""Seconds that one node has to answer: it may wait for a coordinator to be there. Others are asked meanwhile."""


class Coordinator:
    """The coordinator of one group, as far as it is known."""

    def __init__(
        self, group: str, exchange: Exchange, cluster: Cluster, random: Callable[[], float]
    ) -> None:
        self.group = group
        self.address: Address | None = None
        self.node = ""
        self.refused: ZBrokerError | None = None
        """Why no node will ever say where it is; whoever reads it takes it away."""
        self._exchange = exchange
        self._cluster = cluster
        self._retries = Retries(random)
        self._retry_at = 0.0
        self._inquiry: Inquiry | None = None
        self._seen_updates = 0

    def step(self, now: float) -> float | None:
        """Asks where the coordinator is, unless it is known; answers when it wants to be called again."""
        if self._seen_updates != self._cluster.updates:
            self._seen_updates = self._cluster.updates
            self._metadata_changed()
        if self.address is not None or self.refused is not None:
            return None
        if self._inquiry is None:
            if now < self._retry_at:
                return self._retry_at
            self._inquiry = Inquiry(
                self._exchange, messages.FindCoordinator(group=self.group), self._cluster.candidates(),
                timeout=ATTEMPT, accepts=_is_final, failed=self._on_failure, done=self._on_found,
            )  # fmt: skip
            self._inquiry.start(now)
        return self._inquiry.step(now)

    def lost(self, address: Address, error: ZBrokerError, now: float) -> None:
        """A request to `address` failed in a way that another node, or a later moment, may mend."""
        if self.address != address:
            return
        self.address = None
        name, before = error.details.get("leader"), self.node
        if isinstance(error, NotCoordinator) and isinstance(name, str) and name != before:
            self.node = name
            self.address = self._cluster.nodes.get(name)
            if self.address is not None:
                return
        self._retry_at = now + self._retries.after(error)

    def proven(self) -> None:
        """A request to it was answered."""
        self._retries.reset()

    def stop(self) -> None:
        """Nobody wants to know any more."""
        if self._inquiry is not None:
            self._inquiry.abandon()
            self._inquiry = None

    def _metadata_changed(self) -> None:
        reply = self._cluster.reply
        if reply is None or self.address is None:
            return
        for node in reply.nodes:
            if node.name == self.node and not node.alive:
                self.address = None
                self._retry_at = 0.0

    def _on_failure(self, address: Address, outcome: Outcome) -> Address | None:
        if isinstance(outcome, ServersUnreachable | RequestTimedOut):
            self._cluster.on_failure(address, outcome)
        return None

    def _on_found(self, address: Address, outcome: Outcome, now: float) -> None:
        self._inquiry = None
        if isinstance(outcome, messages.FindCoordinatorReply):
            self._cluster.failures.pop(address, None)
            self.address = Address(outcome.host, outcome.port)
            self.node = outcome.node
            return
        error = outcome if isinstance(outcome, ZBrokerError) else _no_answer(outcome)
        if error.retriable:
            self._retry_at = now + self._retries.after(error)
        else:
            self.refused = error


def _is_final(outcome: Outcome) -> bool:
    if isinstance(outcome, ZBrokerError):
        return not outcome.retriable
    return isinstance(outcome, messages.FindCoordinatorReply) and outcome.port > 0


def _no_answer(outcome: Outcome) -> ZBrokerError:
    if isinstance(outcome, messages.FindCoordinatorReply):
        return NotCoordinator("nobody coordinates the group yet")
    return ZBrokerError(f"unexpected answer: {outcome!r}")
