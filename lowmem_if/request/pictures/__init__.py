"""Pictures and masks of the user: files and objects, their decoding, and what a mask repaints."""
