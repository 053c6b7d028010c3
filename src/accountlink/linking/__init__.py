"""Linking a user to a provider account."""
