"""Text and images, ready to learn from: sequences in an order of their own, and batches of them."""
