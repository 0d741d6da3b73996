"""What a broker needs of its surroundings, and the settings that it is given.

Owns no behaviour. `zbroker.node` implements these over ZeroMQ, `zbroker.testing` in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from zbroker.protocol.batch import Buffer
from zbroker.protocol.messages import ClusterChange, Push, Reply
from zbroker.topics import Value


class Conversation(NamedTuple):
    """Whom a reply goes to: the client's route, whether it sends a delimiter, and its correlation number."""

    client: bytes
    delimited: bool
    id: int


class Transport(Protocol):
    """How a broker reaches its clients. No call blocks; what cannot be sent is dropped and counted."""

    def reply(self, to: Conversation, message: Reply, body: Buffer | None = None) -> None:
        """Sends a reply, and a chunk of batches behind it; the body must not change afterwards."""

    def publish(
        self, subject: bytes, head: Push | ClusterChange, batch: Buffer | None = None
    ) -> None:
        """Pushes to those who subscribed; the batch must not change afterwards."""

    def wanted(self, subject: bytes) -> bool:
        """Whether anybody subscribed to the subject."""

    def unread(self, client: bytes | None) -> int:
        """Bytes of chunks sent and not yet taken, by one client or (None) by all together."""

    def client_count(self) -> int:
        """How many clients have spoken lately."""


class PeerLinks(Protocol):
    """How a broker reaches the other nodes. No call blocks; a message may be lost, or come late, without a word."""

    def send(self, node: str, lane: Literal["control", "data"], frames: Sequence[Buffer]) -> None:
        """Sends frames, which must not change afterwards."""

    def connect(self, node: str, host: str, port: int) -> None:
        """A node that the configuration does not name greeted: it is reached at this base port from now on."""


class Replier(Protocol):
    """Sends a reply and counts the request as answered."""

    def __call__(self, to: Conversation, message: Reply, body: Buffer | None = None) -> None: ...


class Report(Protocol):
    """Where a broker tells what happened, for the node's log: an event's name and its facts."""

    def __call__(self, event: str, /, **facts: Any) -> None: ...


class FreshId(Protocol):
    """Where identifiers come from: 32 hexadecimal digits, never the same twice."""

    def __call__(self) -> str: ...


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One broker's settings. Sizes in bytes, times in milliseconds."""

    node: str
    cluster_name: str
    disk_id: str
    incarnation: int = 1
    """Which start of a node this is: larger for each start on one disk, never the same on two disks."""
    clean: bool = False
    """The last stop on this disk was in order: all that was written then is on disk."""
    peers: tuple[str, ...] = ()
    """The other nodes of the configuration."""
    session_timeout: int = 1000
    """Silence after which a node is taken for dead."""

    host: str
    port: int
    rack: str | None = None
    voters: tuple[str, ...]
    topic_defaults: Mapping[str, Value] = {}
    frame_max: int = 8 << 20
    batch_max: int = (8 << 20) - (64 << 10)
    """The largest `max_batch` that a topic may have: its batches have to fit into a frame with their head."""
    memory_max: int = 256 << 20
    in_flight_max: int = 1000
    """Requests that one client may have unanswered."""
    in_flight_total_max: int = 100_000
    """Requests that all clients together may have unanswered."""
    fetch_max: int = 4 << 20
    """Largest chunk that a fetch is answered with, but for a single larger batch."""
    unread_max: int = 16 << 20
    """Bytes of chunks that may be on their way to one client; what it asks beyond that waits."""
    wait_max: int = 60_000
    """Longest that a request may wait."""
    beacon_interval: int = 500
    offsets_retention: int = 7 * 86_400_000
    """How long the positions of a group without members are kept."""
    software: str = "zbroker"

    @property
    def election_timeout(self) -> int:
        """Silence of the controller after which another stands: a part of a session, the rest is for fencing it."""
        return self.session_timeout * 6 // 10
