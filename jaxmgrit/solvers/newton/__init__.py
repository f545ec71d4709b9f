"""Newton on intervals: multigrid of two levels whose coarse step is the linearised interval."""
