"""Pictures of measurements, drawn from the files that the commands leave."""
