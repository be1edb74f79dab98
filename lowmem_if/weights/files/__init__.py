"""Read, write, convert and stage weight files."""
