"""Files of prompt embeddings: prompt -> tensor of shape (1, 77, width)."""
