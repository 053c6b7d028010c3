"""Link a user to a provider account, and remove the link again."""
