"""Map the application's tables: the role of each column, and the values that it can hold."""
