"""How a solve is done."""
