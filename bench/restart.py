"""How long a node takes to serve again after `kill -9`, with a large log.

    python -m bench.restart [--size 1GiB] [--runs 5]

Fills one topic of four partitions, kills the node in the middle of writing, and measures from the start of the new
process until it answers a request; what the interpreter needs to import is part of it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from zbroker import Admin, Producer
from zbroker.testing.nodes import NodeProcess
from zbroker.units import format_size, parse_size

VALUE = 1024
CHUNK = 5000


def fill(servers: str, size: int) -> None:
    """Writes so many bytes, and leaves some under way."""
    values = [os.urandom(VALUE)] * CHUNK
    with Admin(servers) as admin:
        admin.create_topic("bench", partitions=4, fsync="never")
    producer = Producer(servers, delivery_timeout=5)
    for _ in range(size // (VALUE * CHUNK)):
        producer.send_many("bench", values)
    producer.flush(60)
    for _ in range(20):
        producer.send_many("bench", values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=parse_size, default=1 << 30)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        node = NodeProcess(Path(folder))
        node.start()
        pid = os.fork()
        if not pid:
            fill(node.servers, args.size)
            os._exit(0)
        os.waitpid(pid, 0)
        took = []
        try:
            for _ in range(args.runs):
                node.kill()
                start = time.perf_counter()
                node.start()
                with Admin(node.servers) as admin:
                    assert admin.describe_topic("bench").partitions[0].leader
                took.append(time.perf_counter() - start)
                print(f"{took[-1]:.3f} s", flush=True)
        finally:
            node.kill()
    print(
        f"median {statistics.median(took):.3f} s, worst {max(took):.3f} s, {format_size(args.size)}"
    )


if __name__ == "__main__":
    main()
