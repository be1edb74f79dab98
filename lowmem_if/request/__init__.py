"""What the user asks for: images, settings, input images, batch files. Imports no torch."""
