"""Decides where each component lives: pure functions over frozen values. Imports no torch."""
