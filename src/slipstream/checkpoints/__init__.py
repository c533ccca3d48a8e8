"""Checkpoints: one module per published format, the layouts by name, and the places of files."""
