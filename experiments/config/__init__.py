"""Configs: what they may say, how they are read, and how their keys fit together."""

from experiments.config.reader import read, read_run, text, write

__all__ = ["read", "read_run", "text", "write"]
