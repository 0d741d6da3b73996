"""Load generators: one a client library, in its own language, all with the words of `bench.load`."""
