"""Judging a unique index: which rows it keeps apart."""
