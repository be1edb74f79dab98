"""Dry runs of the project's own stages on fake tensors: peaks of an accelerator that is not there."""
