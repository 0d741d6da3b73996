"""Who is who: the metadata that every node agrees on, the controller that decides them, and placement.

`records` are the words of the metadata log, `metadata` the state that they make, and `controller`, `membership`,
`recovery`, `moves` and `voters` the decisions that write them. `quorum` keeps the log among the voters: `election` says
who leads it, `electorate` who votes, `snapshots` what of it may go.
"""
