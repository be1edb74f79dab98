"""Decides where each component is kept: pure functions over frozen values. Imports no torch."""
