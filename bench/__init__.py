"""What zbroker costs and how fast it is, measured: each module is a command, `python -m bench.NAME --help`.

`pipeline` is the yardstick, the smallest thing over the same libraries that still does a broker's work; `one_node`
measures one producer, one node and one consumer against it in the same run. Only ratios of one run count.
"""
