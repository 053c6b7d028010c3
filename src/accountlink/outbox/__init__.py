"""Store the events of links and grants, and deliver them to consumers."""
