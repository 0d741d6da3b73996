"""Fan-out: records delivered a second, to all live consumers together, from the first `send` until the last has all.

A producer sends records of 100 B as quickly as it can. Consumers of a client in Python are spread over up to eight
processes, those of others are threads of one. Each has to have every record once and in order.
"""

from __future__ import annotations

from bench.doing import all_of, listeners, produced, producers
from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client

SIZE = 100
CONSUMERS = (1, 4, 8, 64)


def case(consumers: int) -> Case:
    """So many consumers."""

    def measure(ground: Ground, client: Client) -> Figures:
        seconds = max(0.05, ground.plan.seconds * 2 / (1 + consumers))
        source = ground.client(client.pair) if client.pair else client
        processes = 8 if client.python else 1
        with (
            ground.topic() as topic,
            listeners(
                ground,
                client,
                topic,
                consumers,
                size=SIZE,
                processes=processes,
                numbered=not client.pair,
            ) as readers,
            all_of(producers(ground, source, topic, size=SIZE, seconds=seconds)) as writers,
        ):
            sent = produced([writers[0].ready().go().result()])
            count = sum(sent.counts)
            found = [reader.go(count).result(180) for reader in readers]
        took = max(f["end"] for f in found) - sent.start
        return {"delivered/s": consumers * count / took * 1e9}

    plural = "s" if consumers > 1 else ""
    return Case(
        "fanout",
        f"{consumers} consumer{plural}",
        Arena(1, "never"),
        "live",
        measure,
        consumers == 4,
    )


def cases(plan: Plan) -> list[Case]:
    """Few and many."""
    return [case(consumers) for consumers in CONSUMERS]
