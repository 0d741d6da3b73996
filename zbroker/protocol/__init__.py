"""The words that nodes and clients exchange, and nothing that acts on them.

Four modules, from the bytes up: `compression` squeezes a payload, `batch` lays out records on the
wire and on disk, `messages` holds every message as a typed struct, `frames` turns messages into
ZeroMQ frames and back. `docs/protocol.md` specifies the same for other languages.
"""
