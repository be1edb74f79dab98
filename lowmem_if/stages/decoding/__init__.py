"""The decoder of a VAE in strips of rows: the same computation in a third of the memory."""
