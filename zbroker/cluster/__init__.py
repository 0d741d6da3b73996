"""Who is who: the metadata that every node agrees on, the controller that decides them, and placement.

`records` are the words of the metadata log, `metadata` the state that they make, `controller` the decisions that
write them. So far a cluster is one voter: what its log has flushed is committed.
"""
