"""The forms in which other programs write prompts into files."""
