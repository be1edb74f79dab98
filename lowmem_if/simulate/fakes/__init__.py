"""Stand-ins below the simulated device: its streams, and views of fake tensors."""
