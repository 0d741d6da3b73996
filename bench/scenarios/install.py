"""Install: what a system takes of the disk, and how long installing it took, with the packages' download.

zbroker: `pip install` into a fresh environment, everything that it brings. Others: their server's part, and the time of
`bench/peers/install`, with their clients. What all of them need besides (Python, a Java runtime) is not counted.
"""

from __future__ import annotations

from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Client


def measure(ground: Ground, client: Client) -> Figures:
    """As the driver knows it."""
    found = ground.system.footprint()
    return {"install MiB": found["install_mib"], "install s": found["install_s"]}


def cases(plan: Plan) -> list[Case]:
    """One."""
    return [Case("install", "server", None, "first", measure)]
