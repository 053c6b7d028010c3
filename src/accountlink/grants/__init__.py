"""Share access by grants, which a token gives."""
