"""Slipstream: streaming speech-to-text by delayed-streams modelling."""

__version__ = "0.1.0"
