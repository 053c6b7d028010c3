"""Run work on a database, read its errors, and decide when to try again."""
