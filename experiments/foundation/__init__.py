"""What all rooms of the experiments stand on: files, figures, and what sections of a config are made of."""
