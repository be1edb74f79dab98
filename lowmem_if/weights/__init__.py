"""From the Hub to files, from file to device, and back out of memory."""
