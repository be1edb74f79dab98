"""What the Hub says about weights that are not on this disk."""
