"""Which parameters of a run are evaluated: the newest that can be believed, or those of an iteration."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

import jaxmgrit as jm
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.problems import Data
from experiments.runs.binding import Binding
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.parameters import PARAMETERS, load_final, read_final
from experiments.training import build
from experiments.training.session import Session


class Trained(NamedTuple):
    """Parameters of a run.

    Attributes:
        params: The parameters.
        iteration: How many updates they have had.
        network: The config of their network; of a nested training it may be a shallower one.
        remarks: Why newer ones are not used.
    """

    params: jm.Params
    iteration: int
    network: Config
    remarks: list[str]


def load_trained(config: Config, data: Data, folder: Path, iteration: int | None = None) -> Trained:
    """Load the parameters of a run.

    Args:
        config: Of the run.
        data: Of the run.
        folder: Of the run.
        iteration: Of the parameters; None: the latest that there are.

    Raises:
        ConfigError: There are none, or none that can be used.
    """
    checkpoints, final = Checkpoints(folder, 1, Binding(config, data)), read_final(folder)
    session = Session(config, data)

    def of_checkpoint(path: Path) -> tuple[jm.Params, Config]:
        snapshot = checkpoints.read(path, session.like).snapshot
        return snapshot.params, session.network

    def of_end() -> tuple[jm.Params, Config]:
        params = load_final(folder, final)
        # Of shapes alone: nothing is drawn or computed for it.
        if _shapes(params) != _shapes(jax.eval_shape(lambda: build.initial_params(config, data))):
            raise ValueError(f"{folder / PARAMETERS}: its arrays are not those of this run's network")
        return params, config

    for paths in checkpoints.listed():
        sources: list[tuple[int, Callable[[], tuple[jm.Params, Config]]]] = []
        if final.iteration is not None and (folder / PARAMETERS).exists():
            sources.append((final.iteration, of_end))
        sources += [(int(path.name), functools.partial(of_checkpoint, path)) for path in paths]
        sources.sort(key=lambda source: -source[0])  # stable: of one iteration, the final parameters come first
        wanted = [source for source in sources if iteration in (None, source[0])]
        reasons: list[str] = []
        for number, load in wanted:
            try:
                params, network = load()
            except ConfigError:
                # It is a ValueError too, but about the config, and no other source would help.
                raise
            except ValueError as error:
                reasons.append(str(error))
            else:
                return Trained(params, number, network, reasons)
    if iteration is not None and not wanted:
        known = ", ".join(map(str, dict.fromkeys(number for number, _ in reversed(sources)))) or "none"
        raise ConfigError(f"--iteration {iteration}: expected that of a checkpoint in {folder}: {known}.")
    raise ConfigError("\n".join([*reasons, f"{folder}: expected {PARAMETERS} or a checkpoint that can be used."]))


def _shapes(params: jm.Params) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): (leaf.shape, leaf.dtype) for path, leaf in leaves}
