"""The folder a run leaves behind: files, checkpoints, pictures."""
