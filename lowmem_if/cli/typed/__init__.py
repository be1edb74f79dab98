"""Check what was typed at the command line before anything is planned or loaded."""
