"""Teacher, data, losses, and the loop that distils a student out of them while it is cut."""
