"""Runs a plan: the worker process, the run folder, the fallback after a shortage."""
