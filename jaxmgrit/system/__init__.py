"""The network as the solvers see it: one step, its partition into intervals, and sweeps over them."""
