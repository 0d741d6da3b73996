"""Consumer groups: who reads which partitions, and how far each group has come.

Replicated state, as the metadata are: a coordinator's decision turns a request into records of the internal topic
`__groups`, and `apply` is the only thing that changes the state, so that fail-over is replay.

=============== ====================================================================================================
module          what it has
=============== ====================================================================================================
`records`       the records of the internal topic: one a group, one a member, one a committed offset
`state`         what those records make: groups, members, offsets
`catalog`       the topics as a coordinator sees them, and what a subscription matches
`assignment`    which member is to have which partition: `sticky`, `range`
`sessions`      what only the present coordinator knows of members: when they were heard, who waits for an answer
`rebalance`     from the present owners to a new target, without a moment at which a partition has two
`targets`       when a new target is made, and how members are brought to it
`coordinator`   the decisions: joins, heartbeats, leaves, ends of sessions
`outcome`       what is decided: records, and the answers that rest on them
`checks`        bounds of what is asked
`offsets`       the decisions about committed offsets, and when they expire
`describe`      a group for people
=============== ====================================================================================================
"""
