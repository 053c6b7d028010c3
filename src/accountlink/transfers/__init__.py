"""Give another user's link to the user who has proved control of the account."""
