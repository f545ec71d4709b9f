"""What one iteration of one-shot training does."""
