"""A client of zbroker without zbroker: a REQ socket, MessagePack, and the batch laid out by hand.

    python bare_client.py HOST:PORT TOPIC

Writes one record and reads the partition back. REQ puts an empty frame in front of each message; a
node takes it and sends it back. Needs pyzmq, msgpack and crc32c; see docs/protocol.md.
"""

import struct
import sys
import time

import crc32c
import msgpack
import zmq

_, address, topic = sys.argv
socket = zmq.Context().socket(zmq.REQ)
socket.connect(f"tcp://{address}")


def ask(op, *body, **fields):
    """One request: the reply's head as a dict, and the frames behind it."""
    socket.send_multipart([msgpack.packb({"op": op, "topic": topic, **fields}), *body])
    head, *rest = socket.recv_multipart()
    reply = msgpack.unpackb(head)
    if reply["op"] == "error":
        sys.exit(f"{reply['message']} ({reply['code']})")
    return reply, rest


now = int(time.time() * 1000)
payload = msgpack.packb(
    [[0, b"store-7", b"17.50", [["unit", b"EUR"]]]]
)  # delta, key, value, headers
zone = struct.pack(
    "<4sBxHIIIqqqqi", b"ZBAT", 1, 0, 1, len(payload), len(payload), now, now, -1, -1, -1
)
crc = crc32c.crc32c(zone + payload)
reply, _ = ask("produce", zone + struct.pack("<I28x", crc) + payload, partition=0)
print("written at offset", reply["base_offset"])

reply, [chunk] = ask("fetch", partition=0, offset=0)
while chunk:
    attributes, _span, length = struct.unpack_from("<HII", chunk, 6)
    (offset,) = struct.unpack_from("<q", chunk, 60)
    if not attributes & 0xFF:  # neither compressed nor the nodes' own
        for number, record in enumerate(msgpack.unpackb(chunk[88 : 88 + length])):
            print(offset + number, *record[1:])
    chunk = chunk[88 + length :]
