"""The measurements for the first hour with a GPU: `make gpu-check`."""
