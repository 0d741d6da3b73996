"""The yardstick as one more system: the smallest pipeline that the machine and the libraries allow."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.peers.base import FSYNC, Arena, Client, Servers, Unsupported, load_command


class Limit:
    """The driver; it has no server of its own."""

    name = "limit"
    title = "the yardstick"
    warm_with: tuple[str, ...] = ()
    by_topic: frozenset[str] = frozenset(FSYNC)
    clients = (
        Client(
            "pipeline", load_command("limit", sys.executable), frozenset({"produce"}), python=True
        ),
    )

    def why_not(self) -> str | None:
        """It is always there."""
        return None

    def version(self) -> str:
        """It has none."""
        return ""

    def start(self, folder: Path, arena: Arena, *, wait: bool = True) -> LimitServers:
        """Nothing to start: the pipeline starts its broker itself."""
        if arena.nodes > 1:
            raise Unsupported("the yardstick has one node")
        return LimitServers(folder, arena)

    def footprint(self) -> dict[str, float]:
        """Nothing."""
        return {}


class LimitServers(Servers):
    """No servers."""

    def __init__(self, folder: Path, arena: Arena) -> None:
        super().__init__(folder, arena)

    def __enter__(self) -> LimitServers:
        return self

    def create(self, topic: str, *, partitions: int = 1, topics: int = 1) -> None:
        """Nothing to make."""

    def delete(self, topic: str, *, topics: int = 1) -> None:
        """Nothing to remove."""
