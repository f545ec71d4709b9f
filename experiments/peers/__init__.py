"""Programs of others, timed in turns with this library's by a line protocol."""
