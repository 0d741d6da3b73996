"""Listens to a topic as its records are committed: a plain SUB socket, without zbroker.

    python listen.py HOST:PORT TOPIC

Shows what PUB delivers, which may have holes: a slow listener is dropped, never waited for. The port
is the node's base port; its publisher is one higher. Needs pyzmq and msgpack.
"""

import sys

import msgpack
import zmq

_, address, topic = sys.argv
host, _, port = address.rpartition(":")
socket = zmq.Context().socket(zmq.SUB)
socket.connect(f"tcp://{host}:{int(port) + 1}")
socket.subscribe(f"{topic}/")  # every partition; the slash keeps `sales` from matching `sales2`
while True:
    subject, head, *batch = socket.recv_multipart()
    records = msgpack.unpackb(batch[0][88:]) if batch and batch[0][6] & 0x17 == 0 else []
    print(subject.decode(), msgpack.unpackb(head).get("high_watermark", 0), records, flush=True)
