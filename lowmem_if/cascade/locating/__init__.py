"""What a user chose to run, by names, folders and repositories, and where it is on this disk."""
