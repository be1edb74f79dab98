"""Ways of loading and running the real-size networks, measured side by side. Not in the wheel."""
