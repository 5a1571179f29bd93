"""Which units go (importance), how many at a step (schedule), to what shape (plan), and the cut itself (shrink)."""
