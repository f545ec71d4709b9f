"""Training: problems, trainers, their states, and what goes into and out of them."""
