"""Helpers under Kyutai's names."""
