"""What tests of a log broker need: simulated storage, and helpers for nodes. Shipped to users, imported by nothing."""
