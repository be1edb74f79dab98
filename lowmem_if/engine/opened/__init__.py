"""Open single stages in the user's own process: planned, counted, and released."""
