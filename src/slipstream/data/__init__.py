"""Training data: manifests, word times, synthesis, packs."""
