"""Giving another user's link to the user who proved control of the account."""
