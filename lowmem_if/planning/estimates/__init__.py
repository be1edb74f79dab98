"""Estimates of a step: memory, operations and seconds, from tables and headers."""
