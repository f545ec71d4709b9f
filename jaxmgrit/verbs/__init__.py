"""What `solve`, `adjoint_solve`, `propagate`, `scan` and the trainers run: checked networks in, solutions out."""
