"""How copies of a log become equal: what a leader sends, what a follower takes, what counts as committed.

One protocol for the metadata partition (its leader elected, a majority commits) and for all others (their leaders
appointed, the in-sync replicas commit). Pure: messages, completions and time come in, messages go out through `Peers`.
`docs/replication.md` has the rules with their reasons.

    commit     which offset counts: of a majority, of the in-sync replicas
    progress   what a leader knows of one follower
    leader     sends, hears, and moves the high watermark
    follower   takes what continues its log, and says how far it got
"""
