"""From a config to a training, and the loop that runs it."""
