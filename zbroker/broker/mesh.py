"""The other nodes as this one knows them: who is in which start, on which disk, and whether they know this start.

Owns the envelope of every message between nodes. A peer's messages are taken only from the start that it greeted with,
for this very start and this very cluster; whatever else comes is a leftover of an earlier process or of another
cluster: it is dropped and counted. Never looks into a message but a greeting.

========= ================================== ========= =============================================================
a peer is on                                 next      effect
========= ================================== ========= =============================================================
unknown   its greeting                       greeted   answered with a greeting at once, unless it knows this start
greeted   a greeting that names this start   linked    messages go out
linked    a greeting of another start        greeted   who talked to the earlier start is told
any       a greeting of an earlier start on  same      dropped
          the same disk
========= ================================== ========= =============================================================

Greetings go out every `GREET_MS` until the peer is linked, then every `LINKED_GREET_MS`, so that a peer that lost this
start's greeting learns of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from zbroker.broker.ports import BrokerSettings, PeerLinks
from zbroker.cluster.records import FEATURE_LEVEL
from zbroker.errors import ZBrokerError
from zbroker.protocol import peers
from zbroker.protocol.batch import Buffer
from zbroker.protocol.frames import Frame
from zbroker.protocol.peers import Envelope, Form, Greeting, Peer, SnapshotPart

GREET_MS = 100
LINKED_GREET_MS = 2000

Lane = Literal["control", "data"]
Received = tuple[str, int, Peer, Sequence[Frame]]


class PeerState(msgspec.Struct):
    """One peer.

    Attributes:
        incarnation: the start that it greeted with, 0 before.
        greeting: its last greeting.
        cluster: its cluster's id, empty where it has none.
        knows: it knows this node's start.
        gone: its port refused this node's last connect.
        greeted_at: when it was last sent a greeting; ms, monotonic.
    """

    incarnation: int = 0
    greeting: Greeting | None = None
    cluster: str = ""
    knows: bool = False
    gone: bool = False
    greeted_at: int = -1_000_000

    @property
    def linked(self) -> bool:
        """Whether both know each other's start."""
        return self.incarnation != 0 and self.knows


class MetadataLanes:
    """How the metadata partition reaches the peers: snapshots on the data lane, all else on the control lane."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def send(self, node: str, message: Peer, batches: Sequence[Buffer]) -> None:
        """Sends to a peer; may be lost."""
        self._mesh.send(
            node, message, batches, "data" if isinstance(message, SnapshotPart) else "control"
        )


class Mesh:
    """All links of one node. See the module.

    Attributes:
        cluster: this node's cluster id, empty before it has one.
        empty: this disk does not know who voted first.
        counters: what was dropped, by reason.
    """

    def __init__(
        self, settings: BrokerSettings, links: PeerLinks, *, changed: Callable[[str], None]
    ) -> None:
        """
        Args:
            changed: told a peer's name when it is linked, or in another start.
        """
        self.cluster = ""
        self.empty = True
        self.counters: Counter[str] = Counter()
        self.peers: dict[str, PeerState] = {name: PeerState() for name in settings.peers}
        self._settings = settings
        self._links = links
        self._changed = changed
        self._now = 0
        self._envelopes: dict[str, tuple[int, str, bytes]] = {}

    # Sending ---

    def send(
        self, node: str, message: Peer, batches: Sequence[Buffer] = (), lane: Lane = "control"
    ) -> None:
        """Sends to a peer that is linked; to others, and where the link has no room, it is lost."""
        peer = self.peers.get(node)
        if peer is None or not peer.linked:
            self.counters["not_linked"] += 1
            return
        if isinstance(message, peers.SnapshotPart):
            lane = "data"  # no heartbeat waits behind a snapshot
        self._links.send(node, lane, [self._envelope(node, peer), peers.encode(message), *batches])

    def _envelope(self, node: str, peer: PeerState) -> bytes:
        known = self._envelopes.get(node)
        if known is None or known[:2] != (peer.incarnation, self.cluster):
            settings = self._settings
            data = peers.encode(
                Envelope(
                    peers.PEER_VERSION,
                    self.cluster,
                    settings.node,
                    settings.incarnation,
                    peer.incarnation,
                )
            )
            known = self._envelopes[node] = (peer.incarnation, self.cluster, data)
        return known[2]

    def _greet(self, node: str, peer: PeerState) -> None:
        peer.greeted_at = self._now
        settings = self._settings
        greeting = Greeting(
            disk_id=settings.disk_id, seen=peer.incarnation, voters=list(settings.voters),
            empty=self.empty, host=settings.host, port=settings.port, software=settings.software,
            feature_level=FEATURE_LEVEL,
        )  # fmt: skip
        self._links.send(node, "control", [self._envelope(node, peer), peers.encode(greeting)])

    # Receiving ---

    def receive(self, frames: Sequence[Frame], now: int) -> Received | None:
        """A message that counts: the sender's name and start, the message, its batches; None for all else."""
        self._now = now
        try:
            envelope = peers.decode_envelope(frames[0])
            if envelope.version != peers.PEER_VERSION:
                return self._drop("other_version")
            message = peers.decode(frames[1])
        except (ZBrokerError, IndexError):
            return self._drop("malformed")
        if isinstance(message, Greeting):
            taken = self._on_greeting(envelope, message)
            return (envelope.sender, envelope.incarnation, message, ()) if taken else None
        peer = self.peers.get(envelope.sender)
        if peer is None:
            return self._drop("unknown_peer")
        if envelope.to != self._settings.incarnation:
            return self._drop("for_another_start")
        if envelope.incarnation != peer.incarnation:
            return self._drop("of_another_start")
        founding = isinstance(message, Form) and not self.cluster
        if envelope.cluster != self.cluster and not founding:
            return self._drop("of_another_cluster")
        return envelope.sender, envelope.incarnation, message, frames[2:]

    def _drop(self, reason: str) -> Received | None:
        self.counters[reason] += 1
        return None

    def _on_greeting(self, envelope: Envelope, greeting: Greeting) -> bool:
        name, settings = envelope.sender, self._settings
        if envelope.cluster and self.cluster and envelope.cluster != self.cluster:
            self.counters["of_another_cluster"] += 1
            return False
        if name == settings.node:
            self.counters["own_name"] += 1
            return False
        peer = self.peers.get(name)
        if peer is None:
            peer = self.peers[name] = PeerState()
        before = peer.greeting
        if (
            before is not None
            and before.disk_id == greeting.disk_id
            and envelope.incarnation < peer.incarnation
        ):
            self.counters["of_another_start"] += 1
            return False
        moved = before is None or (before.host, before.port) != (greeting.host, greeting.port)
        if moved and name not in settings.peers:
            self._links.connect(name, greeting.host, greeting.port)
        was = (peer.linked, peer.incarnation)
        if envelope.incarnation != peer.incarnation:
            peer.knows = False
        peer.incarnation = envelope.incarnation
        peer.greeting, peer.cluster = greeting, envelope.cluster
        peer.gone = False
        peer.knows = peer.knows or greeting.seen == settings.incarnation
        if not peer.knows or was[1] != peer.incarnation:
            self._greet(name, peer)
        if (peer.linked, peer.incarnation) != was:
            self._changed(name)
        return True

    # Links and time ---

    def on_link(self, node: str, event: Literal["gone", "up"]) -> None:
        """The node's own port refused a connect, or took one."""
        peer = self.peers.get(node)
        if peer is not None:
            peer.gone = event == "gone"
            if event == "up" and not peer.linked:
                peer.greeted_at = -1_000_000

    def on_tick(self, now: int) -> None:
        """About every 100 ms: greetings."""
        self._now = now
        for node, peer in self.peers.items():
            pause = LINKED_GREET_MS if peer.linked else GREET_MS
            if now - peer.greeted_at >= pause:
                self._greet(node, peer)

    def regreet(self) -> None:
        """This node belongs to a cluster now: everyone is told."""
        for node, peer in self.peers.items():
            self._greet(node, peer)
