"""How far a student is from its teacher: what is compared, by which formula, and the sum of it."""
