"""The cluster as a client knows it: where nodes are, who leads what, and when to ask again.

Pure. Asks one server at a time, in turn: nodes that are known first, then the servers that the user named. A failed
attempt moves on to the next server at once, and pauses after each whole round. Knowledge never goes back: a reply
with an older version of the same cluster's metadata is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec

from zbroker.client.exchange import Backoff, Body, Call, Exchange, Outcome, Subscription
from zbroker.errors import UnknownTopic, ZBrokerError
from zbroker.protocol import messages
from zbroker.protocol.frames import CLUSTER_SUBJECT
from zbroker.units import Address, UnitError, parse_size

logger = logging.getLogger("zbroker.client")

REFRESH_EVERY = 30.0
"""Seconds after which metadata are asked for without a reason: new partitions, an announcement that was lost."""
REFRESH_GAP = 0.02
"""Least seconds between two refreshes."""
ATTEMPT = 2.0
"""Seconds that one server has to answer."""
UNKNOWN_GRACE = 1.0
"""Seconds for which a topic that does not exist is asked for again: it may have been made a moment ago elsewhere."""

WARN_EVERY = 30.0
"""Seconds between two warnings that nobody answers."""
BATCH_MAX = 4 << 20
"""A topic's `max_batch` where its settings do not say."""


class Leader(msgspec.Struct, frozen=True, gc=False):
    """Who leads a partition; `address` is None while nobody does."""

    address: Address | None
    node: str | None
    epoch: int


class TopicView(msgspec.Struct, frozen=True):
    """A topic as the last metadata had it."""

    name: str
    topic_id: str
    leaders: tuple[Leader, ...]
    batch_max: int
    append_time: bool


class Cluster:
    """What is known of the cluster, for the topics that the client uses (or all)."""

    def __init__(
        self,
        servers: Iterable[Address],
        exchange: Exchange,
        random: Callable[[], float],
        *,
        all_topics: bool = False,
        follow: bool = True,
    ) -> None:
        self.servers = tuple(servers)
        self.nodes: dict[str, Address] = {}
        self.topics: dict[str, TopicView] = {}
        self.missing: dict[str, ZBrokerError] = {}
        """Topics that were asked for and are not there, past the grace."""
        self.version = -1
        self.cluster_id = ""
        self.controller: str | None = None
        self.updates = 0
        """How many times metadata arrived: who keeps something derived compares."""
        self.failures: dict[Address, str] = {}
        """Why a server did not answer the last time."""
        self.reply: messages.MetadataReply | None = None
        self._exchange = exchange
        self._all = all_topics
        self._follow = follow
        self._wanted: dict[str, float] = {}
        """Topics in use, and when each was first found missing (or -1)."""
        self._announced = -1
        self._due: float | None = None
        self._call: Call | None = None
        self._turn = 0
        self._tried = 0
        self._last = -1e9
        self._backoff = Backoff(random)
        self._warn_at = -1e9

    def want(self, topic: str, now: float) -> None:
        """The client uses a topic from now on."""
        if topic not in self._wanted:
            self._wanted[topic] = -1.0
        if topic not in self.topics:
            self.missing.pop(topic, None)
            self.refresh(now)

    def drop(self, topic: str) -> None:
        """The client uses a topic no more."""
        self._wanted.pop(topic, None)
        self.topics.pop(topic, None)
        self.missing.pop(topic, None)

    def refresh(self, now: float, pause: float = 0.0) -> None:
        """Asks again soon; several wishes become one request."""
        due = max(now + pause, self._last + REFRESH_GAP)
        if self._due is None or due < self._due:
            self._due = due

    def on_change(self, change: messages.ClusterChange, now: float) -> None:
        """A node announced the version of its metadata."""
        if self.cluster_id and change.cluster and change.cluster != self.cluster_id:
            return
        if change.version > max(self.version, self._announced):
            self._announced = change.version
            self.refresh(now)

    def leader(self, topic: str, partition: int) -> Leader | None:
        """The partition's leader as far as known; None when the partition is not."""
        view = self.topics.get(topic)
        if view is None or not 0 <= partition < len(view.leaders):
            return None
        return view.leaders[partition]

    def any_address(self) -> Address:
        """A server to ask what any server can answer."""
        candidates = self._candidates()
        return candidates[self._turn % len(candidates)]

    def addresses(self) -> list[Address]:
        """Every node's address that is known."""
        return list(dict.fromkeys(self.nodes.values()))

    def step(self, now: float) -> float | None:
        """Asks when it is time to; answers when it wants to be called again."""
        if self._call is not None:
            return None
        if self._due is None:
            if self.updates and (self._wanted or self._all):
                self._due = self._last + REFRESH_EVERY
            else:
                return None
        if now < self._due:
            return self._due
        self._due = None
        message = messages.Metadata(topics=None if self._all else list(self._wanted))
        self._call = self._exchange.request(
            self.any_address(), message, self._on_reply, now=now, timeout=ATTEMPT
        )
        return None

    def _candidates(self) -> list[Address]:
        return list(dict.fromkeys((*self.nodes.values(), *self.servers)))

    def _on_reply(self, call: Call, outcome: Outcome, _body: Body, now: float) -> None:
        self._call = None
        if not isinstance(outcome, messages.MetadataReply):
            self._failed(call.address, str(outcome), now)
            return
        if outcome.cluster == self.cluster_id and outcome.version < self.version:
            self._failed(call.address, "its metadata are older than what is known", now)
            return
        self._tried = 0
        self._backoff.reset()
        self.failures.clear()
        self._last = now
        self._apply(outcome, call, now)
        if any(name not in self.topics for name in self._wanted if name not in self.missing):
            self.refresh(now, 0.1)
        elif self.version < self._announced:
            self.refresh(now, 0.02)

    def _failed(self, address: Address, reason: str, now: float) -> None:
        self.failures[address] = reason
        self._turn += 1
        self._tried += 1
        self._last = now
        if self._tried >= len(self._candidates()):
            self._tried = 0
            if now >= self._warn_at:
                self._warn_at = now + WARN_EVERY
                logger.warning("no server answers (%s); trying on", self.unreachable())
            self.refresh(now, self._backoff.next())
        else:
            self.refresh(now, REFRESH_GAP)

    def _apply(self, reply: messages.MetadataReply, call: Call, now: float) -> None:
        self.reply = reply
        self.cluster_id = reply.cluster
        self.version = reply.version
        self.controller = reply.controller
        before = self.addresses()
        self.nodes = {
            node.name: Address(node.host, node.port) for node in reply.nodes if node.port > 0
        }
        if self._follow:
            after = self.addresses()
            for address in [old for old in before if old not in after]:
                self._exchange.effects.append(Subscription(address, CLUSTER_SUBJECT, "drop"))
            for address in [new for new in after if new not in before]:
                self._exchange.effects.append(Subscription(address, CLUSTER_SUBJECT, "add"))
        self.updates += 1
        found = {topic.name: topic for topic in reply.topics if topic.error is None}
        for name, topic in found.items():
            self.topics[name] = self._view(topic)
            self.missing.pop(name, None)
            if name in self._wanted:
                self._wanted[name] = -1.0
        asked = call.message.topics if isinstance(call.message, messages.Metadata) else None
        for name in list(self.topics) if asked is None else asked:
            if name not in found:
                self._not_there(name, now)

    def _not_there(self, name: str, now: float) -> None:
        was_there = self.topics.pop(name, None)
        since = self._wanted.get(name, -1.0)
        if since < 0 and name in self._wanted:
            self._wanted[name] = since = now
        if was_there is not None or now - since >= UNKNOWN_GRACE:
            self.missing[name] = UnknownTopic(
                f"there is no topic {name!r}; topics are not created by using them", topic=name
            )

    def _view(self, topic: messages.Topic) -> TopicView:
        leaders = [Leader(None, None, -1)] * len(topic.partitions)
        for part in topic.partitions:
            if 0 <= part.partition < len(leaders):
                address = self.nodes.get(part.leader) if part.leader is not None else None
                leaders[part.partition] = Leader(address, part.leader, part.epoch)
        return TopicView(
            name=topic.name,
            topic_id=topic.topic_id,
            leaders=tuple(leaders),
            batch_max=_batch_max(topic.settings.get("max_batch")),
            append_time=topic.settings.get("timestamp") == "append",
        )

    def unreachable(self) -> str:
        """Which servers did not answer, and why, for a sentence."""
        candidates = self._candidates()
        return "; ".join(
            self.failures.get(address) or f"{address}: no answer yet" for address in candidates
        )


def _batch_max(word: messages.Setting | None) -> int:
    try:
        return BATCH_MAX if word is None else parse_size(word)
    except UnitError:
        return BATCH_MAX
