"""Times of programs, measured by themselves."""
