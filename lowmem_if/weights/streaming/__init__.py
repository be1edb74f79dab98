"""Run a network whose weights stay in the checkpoint."""
