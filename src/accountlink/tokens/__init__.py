"""Signs what leaves the server and comes back."""
