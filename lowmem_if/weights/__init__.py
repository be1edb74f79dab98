"""Weights, from the file to the device and back."""
