"""Build networks on the meta device and put weights into them."""
