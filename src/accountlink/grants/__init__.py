"""Sharing: grants that a token opens."""
