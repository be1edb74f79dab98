"""Checkpoints of IF's real architecture with made-up weights."""
