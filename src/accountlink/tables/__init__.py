"""The application's tables: which column plays which part, and what each can hold."""
