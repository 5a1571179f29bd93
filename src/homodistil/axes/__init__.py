"""What can be cut: a notation for weight dimensions, the families written in it, and their layout in a model."""
