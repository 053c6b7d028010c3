"""Events: their table, and reading them in turns."""
