"""The cluster as a client knows it: where nodes are, who leads what, and when to ask again.

Pure. Any server may be asked (`Inquiry`): first the one that announced something new, then whoever answered last, those
that failed last of all. Knowledge never goes back: a reply with an older version of the same cluster's metadata is
dropped, and so is a partition's leader of an older epoch.

When to ask:

================================== ==========================================================
what happens                       the next question
================================== ==========================================================
a node announces a newer version   at once
a connection is lost, or a request at once; then again after a tenth of the time that it
meets no leader (`chase`)          lasts, of one node after the other
a topic is not known               at once, and again for a moment: it may have been made just now
nothing                            after `REFRESH_EVERY`
================================== ==========================================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec

from zbroker.client.exchange import Backoff, Exchange, Outcome, Subscription
from zbroker.client.inquiry import Inquiry, reason
from zbroker.client.parts import names_fit
from zbroker.errors import UnknownTopic, ZBrokerError
from zbroker.protocol import messages
from zbroker.protocol.frames import CLUSTER_SUBJECT
from zbroker.units import Address, UnitError, parse_size

logger = logging.getLogger("zbroker.client")

REFRESH_EVERY = 30.0
"""Seconds after which metadata are asked for without a reason: new partitions, an announcement that was lost."""
REFRESH_GAP = 0.02
"""Least seconds between an answer and the next question."""
PUSH_GAP = 0.002
"""The same, where a newer version was announced."""
CHASE_SHARE = 0.1
"""While a leader is missed: the pause between two questions, as a share of the time since it was first missed."""
CHASE_MOST = 1.0
CHASE_REST = 2.0
"""Seconds without a miss after which the next one is a new one."""
ATTEMPT = 2.0
"""Seconds that one server has to answer."""
UNKNOWN_GRACE = 1.0
"""Seconds for which a topic that does not exist is asked for again: it may have been made a moment ago elsewhere."""
ASIDE = 0.1
"""Seconds before a change is looked at that concerns none of the client's topics."""
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
        self.said: dict[Address | None, int] = {}
        """The newest version that each node announced: until it has, it may not know yet what it leads."""
        self.reply: messages.MetadataReply | None = None
        self._exchange = exchange
        self._all = all_topics
        self._follow = follow
        self._wanted: dict[str, float] = {}
        """Topics in use, and when each was first found missing (or -1)."""
        self._announced = -1
        self._announcer: Address | None = None
        """Who announced that version."""
        self._answerer: Address | None = None
        """The node that answered last."""
        self._due: float | None = None
        self._inquiry: Inquiry | None = None
        self._asked: list[str] | None = None
        self._turn = 0
        self._rotate = False
        """Whether another node than the last is to be asked first."""
        self._last = -1e9
        self._missed_since = -1e9
        self._missed_at = -1e9
        self._backoff = Backoff(random)
        self._warn_at = -1e9
        exchange.when_lost = self._on_lost

    def want(self, topic: str, now: float) -> None:
        """The client uses a topic from now on."""
        if topic not in self._wanted:
            self._wanted[topic] = -1.0
        if topic not in self.topics:
            self.missing.pop(topic, None)
            self.refresh(now)

    def want_all(self, now: float) -> None:
        """The client uses whatever topics there are."""
        if not self._all:
            self._all = True
            self.refresh(now)

    def drop(self, topic: str) -> None:
        """The client uses a topic no more."""
        self._wanted.pop(topic, None)
        self.topics.pop(topic, None)
        self.missing.pop(topic, None)

    def refresh(self, now: float, pause: float = 0.0) -> None:
        """Asks again soon; several wishes become one request."""
        self._ask_by(max(now + pause, self._last + REFRESH_GAP))

    def chase(self, now: float) -> None:
        """A leader is missed: asks again and again, ever less often while nothing changes."""
        if now - self._missed_at > CHASE_REST:
            self._missed_since = now
        self._missed_at = now
        pause = min(CHASE_MOST, REFRESH_GAP + CHASE_SHARE * (now - self._missed_since))
        self._rotate = True
        self._ask_by(max(now, self._last + pause))

    def on_change(self, change: messages.ClusterChange, now: float) -> None:
        """A node announced the version of its metadata."""
        if self.cluster_id and change.cluster and change.cluster != self.cluster_id:
            return
        sender = self.nodes.get(change.node)
        if sender is not None and change.version > self.said.get(sender, -1):
            self.said[sender] = change.version
        if change.version <= max(self.version, self._announced):
            return
        self._announced = change.version
        self._announcer = sender or self._announcer
        if self._announcer is not None:
            self.failures.pop(self._announcer, None)
        if self._all or not change.topics or any(name in self._wanted for name in change.topics):
            self._ask_by(max(now, self._last + PUSH_GAP))
        else:
            self.refresh(now, ASIDE)

    def is_news(self, outcome: Outcome) -> bool:
        """Whether an outcome tells of the cluster, and of no older one than is known."""
        return isinstance(outcome, messages.MetadataReply) and (
            outcome.cluster != self.cluster_id or outcome.version >= self.version
        )

    def learn(self, reply: messages.MetadataReply, now: float) -> None:
        """Somebody else's question was answered: nodes and topics as they are now."""
        if self.is_news(reply):
            self._apply(reply, [], now)

    def on_not_leader(
        self, topic: str, partition: int, details: dict[str, object], now: float
    ) -> None:
        """A node named the partition's leader, of a newer epoch perhaps than the one that is known."""
        view = self.topics.get(topic)
        name, epoch = details.get("leader"), details.get("epoch")
        if view is None or not isinstance(name, str) or not isinstance(epoch, int):
            return
        address = self.nodes.get(name)
        if (
            address is None
            or not 0 <= partition < len(view.leaders)
            or epoch <= view.leaders[partition].epoch
        ):
            return
        leaders = list(view.leaders)
        leaders[partition] = Leader(address, name, epoch)
        self.topics[topic] = msgspec.structs.replace(view, leaders=tuple(leaders))
        self._missed_since = now

    def leader(self, topic: str, partition: int) -> Leader | None:
        """The partition's leader as far as known; None when the partition is not."""
        view = self.topics.get(topic)
        if view is None or not 0 <= partition < len(view.leaders):
            return None
        return view.leaders[partition]

    def addresses(self) -> list[Address]:
        """Every node's address that is known."""
        return list(dict.fromkeys(self.nodes.values()))

    def candidates(self) -> list[Address]:
        """Whom to ask what any server can answer, the best first."""
        known = list(dict.fromkeys((*self.nodes.values(), *self.servers)))
        good = [address for address in known if address not in self.failures]
        if self._rotate and good:
            self._rotate = False
            self._turn += 1
            turn = self._turn % len(good)
            good = good[turn:] + good[:turn]
        elif self._answerer is not None:
            good.sort(key=lambda address: address != self._answerer)
        if self._announced > self.version:
            good.sort(key=lambda address: address != self._announcer)
        bad = [address for address in self.failures if address in known]  # the longest ago first
        return good + bad

    def step(self, now: float) -> float | None:
        """Asks when it is time to; answers when it wants to be called again."""
        inquiry = self._inquiry
        if inquiry is not None:
            due = self._due if self._announced > self.version else None
            if due is not None and now >= due and self._announcer is not None:
                self._due = due = None
                inquiry.prefer(self._announcer, now)
            asks = inquiry.step(now)
            return asks if due is None else due if asks is None else min(asks, due)
        if self._due is None:
            if self.updates and (self._wanted or self._all):
                self._due = self._last + REFRESH_EVERY
            else:
                return None
        if now < self._due:
            return self._due
        self._due = None
        self._asked = list(self._wanted) if not self._all and names_fit(self._wanted) else None
        self._inquiry = Inquiry(
            self._exchange, messages.Metadata(topics=self._asked), self.candidates(), timeout=ATTEMPT,
            accepts=self.is_news, failed=self.on_failure, done=self._on_reply,
        )  # fmt: skip
        self._inquiry.start(now)
        return self._inquiry.step(now)

    def _ask_by(self, due: float) -> None:
        if self._due is None or due < self._due:
            self._due = due

    def on_failure(self, address: Address, outcome: Outcome) -> None:
        """A server did not answer, or not with what is known already: the others are asked first from now on."""
        old = isinstance(outcome, messages.MetadataReply)
        self.failures.pop(address, None)
        self.failures[address] = (
            f"{address}: its metadata are older than what is known" if old else reason(outcome)
        )

    def _on_lost(self, address: Address, why: str, now: float) -> None:
        if self._follow and address in self.nodes.values() and address not in self.failures:
            self.failures[address] = f"{address}: {why}"
            self.refresh(now)

    def _on_reply(self, address: Address, outcome: Outcome, now: float) -> None:
        self._inquiry = None
        self._last = now
        if not isinstance(outcome, messages.MetadataReply) or not self.is_news(outcome):
            if self._is_needed(now):
                if now >= self._warn_at:
                    self._warn_at = now + WARN_EVERY
                    logger.warning("no server answers (%s); trying on", self.unreachable())
                self.refresh(now, self._backoff.next())
            return
        self._backoff.reset()
        self.failures.pop(address, None)
        self._apply(outcome, self._asked, now)
        self._answerer = address if address in self.nodes.values() else self._answerer
        if any(name not in self.topics for name in self._wanted if name not in self.missing):
            self._rotate = True
            self.refresh(now, 0.1)
        elif self.version < self._announced:
            if address == self._announcer:
                self.refresh(now)
            else:
                self._ask_by(now + PUSH_GAP)

    def _is_needed(self, now: float) -> bool:
        """Whether somebody waits for what is not known."""
        return (
            not self.updates
            or now - self._missed_at <= CHASE_REST
            or self._announced > self.version
            or any(name not in self.topics for name in self._wanted)
        )

    def _apply(self, reply: messages.MetadataReply, asked: list[str] | None, now: float) -> None:
        self.reply = reply
        if reply.cluster != self.cluster_id:
            self.cluster_id = reply.cluster
            self._announced = -1
            self.said.clear()
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
            if not self._all and name not in self._wanted:
                continue
            self.topics[name] = self._view(topic, self.topics.get(name), now)
            self.missing.pop(name, None)
            if name in self._wanted:
                self._wanted[name] = -1.0
        for name in dict.fromkeys((*self.topics, *self._wanted)) if asked is None else asked:
            if name not in found:
                self._not_there(name, now)

    def _not_there(self, name: str, now: float) -> None:
        was_there = self.topics.pop(name, None)
        if name not in self._wanted and not self._all:
            return  # nobody uses it any more
        since = self._wanted.get(name, -1.0)
        if since < 0 and name in self._wanted:
            self._wanted[name] = since = now
        if was_there is not None or now - since >= UNKNOWN_GRACE:
            self.missing[name] = UnknownTopic(
                f"there is no topic {name!r}; topics are not created by using them", topic=name
            )

    def _view(self, topic: messages.Topic, known: TopicView | None, now: float) -> TopicView:
        leaders = [Leader(None, None, -1)] * len(topic.partitions)
        for part in topic.partitions:
            if 0 <= part.partition < len(leaders):
                address = self.nodes.get(part.leader) if part.leader is not None else None
                leaders[part.partition] = Leader(address, part.leader, part.epoch)
        if known is not None and known.topic_id == topic.topic_id:
            for number, before in enumerate(known.leaders[: len(leaders)]):
                if before.epoch > leaders[number].epoch:
                    leaders[number] = before
            if known.leaders != tuple(leaders):
                self._missed_since = now
        return TopicView(
            name=topic.name,
            topic_id=topic.topic_id,
            leaders=tuple(leaders),
            batch_max=_batch_max(topic.settings.get("max_batch")),
            append_time=topic.settings.get("timestamp") == "append",
        )

    def unreachable(self) -> str:
        """Which servers did not answer, and why, for a sentence."""
        known = dict.fromkeys((*self.nodes.values(), *self.servers))
        return "; ".join(
            self.failures.get(address) or f"{address}: no answer yet" for address in known
        )


def _batch_max(word: messages.Setting | None) -> int:
    try:
        return BATCH_MAX if word is None else parse_size(word)
    except UnitError:
        return BATCH_MAX
