"""What changes a pipeline while it draws: where its noise comes from, and which passes it leaves out."""
