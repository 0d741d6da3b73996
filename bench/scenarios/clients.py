"""A thousand idle clients: what each takes of the server's memory, and how quick a producer is beside them.

They are consumers of a topic to which nobody writes, and the producer writes to another.
"""

from __future__ import annotations

from bench.doing import RATE, all_of, produce
from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client, resident

CLIENTS, PROCESSES, SIZE = 1000, 4, 100


def measure(ground: Ground, client: Client) -> Figures:
    """Connects them, looks at the server, and produces."""
    pids = ground.servers.pids
    with ground.topic() as quiet, ground.topic() as topic:
        before = sum(map(resident, pids))
        crowd = [
            ground.worker(client, "crowd", topic=quiet, consumers=CLIENTS // PROCESSES)
            for _ in range(PROCESSES)
        ]
        with all_of(crowd):
            for worker in crowd:
                worker.ready(180)
            grown = sum(map(resident, pids)) - before
            sent = produce(ground, client, topic, size=SIZE)
    return {"KiB a client": grown * 1024 / CLIENTS, RATE: sent.rate}


def cases(plan: Plan) -> list[Case]:
    """One."""
    return [Case("clients", f"{CLIENTS:,} idle clients", Arena(1, "never"), "crowd", measure)]
