"""The published loop: quasi-Newton directions and a line search."""
