"""Seal the tokens of a link, so that only its own row, with a key of the application's, can read them."""
