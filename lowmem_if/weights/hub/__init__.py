"""Find, download and check files of the Hugging Face Hub."""
