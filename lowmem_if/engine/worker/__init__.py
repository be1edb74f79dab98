"""The worker process: reads commands, runs one component after the other, sends events."""
