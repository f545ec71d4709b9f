"""The networks of a nested training, each with a config of its own."""

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
