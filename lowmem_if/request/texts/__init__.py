"""What a request brings along about its texts."""
