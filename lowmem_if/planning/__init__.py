"""Decide: frozen values and pure functions over them. Nothing here imports torch but `probe()`."""
