"""What the user asks for: images, options, input images, batch files. Imports no torch."""
