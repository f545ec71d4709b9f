"""Multigrid reduction in time: the full approximation scheme over the layers."""
