"""Dry runs of the same stages on fake tensors, to predict memory."""
