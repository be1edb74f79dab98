"""What the IF cascade consists of, and where its files are. Imports no torch."""
