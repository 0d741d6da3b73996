"""One node running: sockets, files, threads and signals around the pure `Broker`.

`run` starts and stops a node in order, `reactor` is its loop, `sockets` speak ZeroMQ, `storage` runs disk work on
threads over `files`, `folder` owns the data folder, `http` serves metrics and health, `logs` writes the log.
"""

from zbroker.node.run import run_node

__all__ = ["run_node"]
