"""What whoever watches a simulated cluster raises."""


class InvariantBroken(AssertionError):
    """Something is true that must never be."""
