"""What is measured: zbroker, and others doing the same work; a driver a system.

`bench/peers/install` installs the others; `known()` gives the drivers by name.
"""

from __future__ import annotations

from bench.peers.base import System


def known() -> dict[str, System]:
    """Every system by its name, zbroker first."""
    from bench.peers.kafka import Kafka
    from bench.peers.limit import Limit
    from bench.peers.nats import Nats
    from bench.peers.rabbitmq import RabbitMQ
    from bench.peers.redis import Redis
    from bench.peers.zb import ZBroker

    systems: tuple[System, ...] = (ZBroker(), Limit(), Kafka(), Nats(), RabbitMQ(), Redis())
    return {system.name: system for system in systems}
