"""What a step takes: memory, operations, seconds, predicted from tables and headers."""
