"""Links: who is believed about where a node is reached."""

from __future__ import annotations

from typing import Any

import pytest

from zbroker.broker.mesh import Mesh
from zbroker.broker.ports import BrokerSettings
from zbroker.errors import MalformedMessage
from zbroker.protocol import peers
from zbroker.protocol.peers import Envelope, Greeting


class Links:
    """Notes where nodes are said to be reached."""

    def __init__(self) -> None:
        self.connects: list[tuple[str, str, int]] = []

    def send(self, *_: Any) -> None:
        """Nobody hears it."""

    def connect(self, node: str, host: str, port: int) -> None:
        self.connects.append((node, host, port))


def mesh(links: Links) -> Mesh:
    settings = BrokerSettings(
        node="a", cluster_name="c", disk_id="d", host="127.0.0.1", port=5550, voters=("a", "b"),
        peers=("b",),
    )  # fmt: skip
    return Mesh(settings, links, changed=lambda _: None)


def greet(mesh: Mesh, name: str, port: int, incarnation: int = 1, disk: str = "disk") -> None:
    envelope = Envelope(peers.PEER_VERSION, "", name, incarnation, 0)
    greeting = Greeting(disk_id=disk, host="127.0.0.1", port=port)
    mesh.receive([peers.encode(envelope), peers.encode(greeting)], 0)


def test_a_node_that_no_file_names_is_reached_where_it_says_last() -> None:
    links = Links()
    made = mesh(links)
    greet(made, "x", 6000)
    greet(made, "x", 6000)
    greet(made, "x", 7000, incarnation=2, disk="another")
    greet(made, "x", 6000, incarnation=1, disk="another")
    assert links.connects == [("x", "127.0.0.1", 6000), ("x", "127.0.0.1", 7000)]
    greet(made, "b", 9000)
    assert len(links.connects) == 2, "where b is reached, the configuration says"


@pytest.mark.parametrize("port", [-1, 65_533, 70_000])
def test_a_port_that_no_node_can_have_is_malformed(port: int) -> None:
    with pytest.raises(MalformedMessage, match="port"):
        peers.decode(peers.encode(Greeting(disk_id="d", host="127.0.0.1", port=port)))
