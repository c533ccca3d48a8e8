"""Canonical tensor names, the published layouts, and where checkpoints come from."""
