"""Nested iteration: the networks of a training, shallow ones first, and when to go on to the next."""

from typing import Any

from experiments.config.schema import Config


def networks(config: Config) -> list[Config]:
    """The config of every network that is trained, the shallowest first; the last is the config's own.

    Each has its own number of iterations, over which its learning rate's schedule runs.
    """
    nested, network = config.nested, config.network
    given = nested.iterations if isinstance(nested.iterations, list) else [nested.iterations] * (nested.networks - 1)
    shallow = [
        config.model_copy(
            update={
                "network": network.model_copy(update={"layers": network.layers // nested.factor**power}),
                "iterations": iterations,
            }
        )
        for power, iterations in zip(range(nested.networks - 1, 0, -1), given, strict=True)
    ]
    return [*shallow, config]


def most_iterations(config: Config) -> int:
    """How many iterations there are over all networks, at most."""
    return sum(one.iterations for one in networks(config))


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
