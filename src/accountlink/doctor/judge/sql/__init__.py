"""Reading SQL expressions: their tokens, their grammar, and the logic of their values."""
