"""What `docs/blocks.py` writes into the documents: one module for each subject."""
