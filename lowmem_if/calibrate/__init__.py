"""Measures how fast this machine reads and computes, for the cost model."""
