"""Three replicas: records a second into a topic that three nodes keep, each acknowledged once all in sync have it.

The three nodes, and the producer, share this machine's cores and its disk. Redis's own benchmark does not wait for its
replicas.
"""

from __future__ import annotations

from bench.frame import Case, Plan
from bench.peers.base import Arena
from bench.scenarios.produce import case


def cases(plan: Plan) -> list[Case]:
    """100 B and 1 KiB, without fsync."""
    arena = Arena(3, "never")
    return [case(arena, size, quick=True, scenario="replicated") for size in (100, 1024)]
