"""A thousand topics: how long making them takes, and records a second of a producer that goes round them."""

from __future__ import annotations

import time

from bench.doing import RATE, produce, verify
from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client

TOPICS, SIZE = 1000, 100


def measure(ground: Ground, client: Client) -> Figures:
    """Makes them, sends, reads everything back."""
    start = time.monotonic()
    with ground.topic(topics=TOPICS) as topic:
        made = time.monotonic() - start
        sent = produce(ground, client, topic, size=SIZE, lanes=TOPICS, topics=TOPICS)
        verify(ground, topic, sent, size=SIZE, lanes=TOPICS, topics=TOPICS)
    return {"create s": made, RATE: sent.rate}


def cases(plan: Plan) -> list[Case]:
    """One."""
    unless = {"rabbitmq": "a stream of RabbitMQ takes a producer object of its own each"}
    return [
        Case(
            "topics",
            f"{TOPICS:,} topics",
            Arena(1, "never"),
            "produce_topics",
            measure,
            unless=unless,
        )
    ]
