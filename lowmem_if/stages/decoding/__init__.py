"""The decoder of a VAE in strips of rows: the same computation in less than half of the memory."""
