"""One component each: load it, run it, release it."""
