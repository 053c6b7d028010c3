"""Running work on a database: whose transaction it is, what failed, and when to try again."""
