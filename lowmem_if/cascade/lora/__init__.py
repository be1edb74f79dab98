"""LoRA adapters: which file, what its keys mean, and which UNet it fits. Imports no torch."""
