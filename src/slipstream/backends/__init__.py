"""The backends: one implementation of `Runner` each. None imports another."""
