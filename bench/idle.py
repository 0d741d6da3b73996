"""Three nodes with nothing to do: what they take of a core together, and of memory each.

    python -m bench.idle [--seconds 30]

Reads /proc, so it runs on Linux only.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from zbroker import Admin
from zbroker.testing.nodes import ClusterProcesses

SETTLE_S = 5.0


def cpu_seconds(pid: int) -> float:
    """What a process has used, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """A process's resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def main() -> None:
    """Measures, and prints two lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ClusterProcesses(Path(folder)) as cluster:
        with Admin(cluster.servers) as admin:
            admin.create_topic("idle", partitions=4)
        time.sleep(SETTLE_S)
        pids = [node.pid for node in cluster.nodes.values()]
        before, start = sum(map(cpu_seconds, pids)), time.perf_counter()
        time.sleep(told.seconds)
        share = (sum(map(cpu_seconds, pids)) - before) / (time.perf_counter() - start)
        print(f"three idle nodes together: {share * 100:.1f} % of a core")
        print("memory: " + ", ".join(f"{resident_mib(pid):.0f} MiB" for pid in pids))


if __name__ == "__main__":
    main()
