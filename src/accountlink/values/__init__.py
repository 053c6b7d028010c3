"""Values: what a call brings and what it comes to. Pure."""
