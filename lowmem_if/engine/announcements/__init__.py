"""What a run says before it begins."""
