"""The asyncio faces: what `produce` and `replay` measure, through `AsyncProducer` and `AsyncConsumer`."""

from __future__ import annotations

from dataclasses import replace

from bench.doing import RATE, produce, read_back, verify
from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client
from bench.scenarios.replay import filled


def produced(ground: Ground, client: Client) -> Figures:
    """Records of 100 B."""
    with ground.topic() as topic:
        sent = produce(ground, client, topic, size=100, action="produce_async")
        verify(ground, topic, sent, size=100)
    return {RATE: sent.rate}


def consumed(ground: Ground, client: Client) -> Figures:
    """Records of 100 B."""
    topic, sent = filled(ground, 100)
    found = read_back(ground, client, topic, sent, size=100, check="ends", action="consume_async")
    return {RATE: found["records"] / (found["end"] - found["start"]) * 1e9}


def cases(plan: Plan) -> list[Case]:
    """Both ways."""
    case = Case(
        "asyncio_faces", "produce 100 B", Arena(1, "never"), "produce_async", produced, True
    )
    return [case, replace(case, name="replay 100 B", action="consume_async", measure=consumed)]
