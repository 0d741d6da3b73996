"""One node deciding: every message goes to the machine that owns it, every effect out through a port.

`ports` names what a broker needs of its surroundings, `partition` leads one partition, `metadata_log` keeps the
cluster's metadata, `broker` routes between them. The same code runs under ZeroMQ (`zbroker.node`) and under a
simulator (`zbroker.testing`).
"""
