"""Nested iteration: the networks of a training, shallow ones first, and when to go on to the next."""

from typing import Any

from experiments.config.nested import most_iterations, networks
from experiments.config.schema import Config

__all__ = ["most_iterations", "networks", "reason_to_refine"]


def reason_to_refine(config: Config, done: int, row: dict[str, Any]) -> str:
    """Why a shallow network has been trained enough, if it has.

    Args:
        config: The network's own.
        done: Updates of this network.
        row: The metrics of the last of them.
    """
    nested = config.nested
    if nested.loss is not None and row["inexact_loss"] <= nested.loss:
        return f"inexact_loss = {row['inexact_loss']:.4g} has reached nested.loss = {nested.loss:g}"
    if nested.gradient is not None and row["grad_norm"] <= nested.gradient:
        return f"grad_norm = {row['grad_norm']:.4g} has reached nested.gradient = {nested.gradient:g}"
    return f"it has had its {config.iterations} iterations" if done >= config.iterations else ""
