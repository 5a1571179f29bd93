"""A model folder in, numbers out. Knows nothing of how the model was made."""
