"""Finds what blocks or fails to protect links, and writes the migration that repairs it."""
