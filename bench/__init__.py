"""What zbroker costs and how fast it is, measured beside others: `python -m bench --help`.

A package of its own, which is not installed and imports only zbroker's public face. `frame` runs what `scenarios` and
`peers` describe, `report` writes what was found into README and docs. Modules that are commands of their own measure
one thing each: `python -m bench.NAME --help`. Only ratios of one run count.
"""
