"""What a run says while it goes: a header, a table row per exact evaluation, a bar on terminals, a summary."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

import jaxmgrit as jm
from experiments.config.hierarchies import grid_sizes
from experiments.config.schema import Config, Network, Optimizer
from experiments.foundation.functions import is_reference, location, references
from experiments.problems import Data
from experiments.runs.terminal import OUT
from experiments.training.nested import most_iterations, networks

COLUMNS = (
    ("iteration", "iteration", "{:9d}"),
    ("inexact loss", "inexact_loss", "{:12.5g}"),
    ("exact loss", "exact_train_loss", "{:10.5g}"),
    ("inexact acc.", "inexact_accuracy", "{:12.2%}"),
    ("exact acc.", "exact_train_accuracy", "{:10.2%}"),
    ("validation", "exact_validation_accuracy", "{:10.2%}"),
    ("residual", "residual_norm", "{:8.1e}"),
    ("adjoint res.", "adjoint_residual_norm", "{:12.1e}"),
    ("seconds", "seconds", "{:7.1f}"),
)


class Progress:
    """Prints to stdout; the bar appears only where stdout is a terminal."""

    def __init__(self, config: Config, data: Data, devices: int, folder: Path) -> None:
        OUT.remark = f"training goes on, and all it tells is in {folder}"
        self._quiet = config.output.quiet
        if not self._quiet:
            OUT.say(*header(config, data, devices, folder))
            OUT.say("", "compiling ...", "  ".join(title for title, _, _ in COLUMNS))
        hidden = self._quiet or not OUT.isatty()
        self._bar = tqdm(total=most_iterations(config), disable=hidden, file=OUT, leave=False)

    def show(self, row: Mapping[str, Any]) -> None:
        """Show a row of metrics: a table row if it holds an exact evaluation, else only the bar moves."""
        if "exact_train_loss" in row and not self._quiet:
            self.say("  ".join(_cell(row[key], title, form) for title, key, form in COLUMNS))
        self._bar.set_postfix_str(f"loss {row['inexact_loss']:.4f}", refresh=False)
        # Negative after a step back: the bar goes back too.
        self._bar.update(row["iteration"] - self._bar.n)

    def say(self, sentence: str) -> None:
        """Print a sentence between the rows."""
        # By the bar, which takes itself away for the line.
        self._bar.write(sentence, file=OUT)
        OUT.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def _cell(value: Any, title: str, form: str) -> str:
    """A table cell; a sequential solve has no residual, nor has a first cycle that starts on the coarsest level."""
    none = "res" in title and (value == 0 or math.isnan(value))
    return "-".rjust(len(form.format(0))) if none else form.format(value)


def header(config: Config, data: Data, devices: int, folder: Path) -> list[str]:
    """What is about to run, one line per topic."""
    network, optimizer, training = config.network, config.optimizer, config.training
    points = "all points at once" if training.batch_size is None else f"mini-batches of {training.batch_size}"
    start = f", {training.start} starts" if training.method == "one_shot" else ""
    depths = " > ".join(str(one.network.layers) for one in networks(config))
    method = ["sequential, exact states and gradients"]
    if config.training.method == "one_shot":
        method = [f"one-shot, {config.training.schedule.replace('_', ' ')}"]
        method += [f"  {name}: {_hierarchy(config, name)}" for name in ("solver", "adjoint")]
    own = [f"{name} ({location(name.partition(':')[0])})" for name in references(config)]
    return [
        *([f"imports:  {', '.join(own)}"] if own else []),
        f"data:     {data.facts}",
        f"source:   {data.source}",
        f"network:  {depths} {_kind(network)} layers of width {network.width}, "
        f"T = {network.final_time:g}, {config.dtype}",
        f"training: {method[0]}",
        *method[1:],
        f"          {config.iterations} iterations of {_updates(optimizer)}, {points}{start}"
        f"{', mesh-independent' if training.mesh_independent else ''}",
        f"devices:  {devices} x {jax.devices()[0].device_kind} ({_where(config)})",
        f"folder:   {folder}",
    ]


def _kind(network: Network) -> str:
    """A network's layers in words."""
    if network.kind == "transformer":
        return f"pre-norm transformer ({network.heads} heads)"
    if is_reference(network.kind):
        return network.kind
    return "pre-norm MLP" if network.kind == "mlp" else f"{network.kind} {network.activation}"


def _where(config: Config) -> str:
    """The backend in words."""
    backend = config.backend
    if backend.kind == "mpi" and jm.MPI().comm.Get_size() == 1:
        return "mpi, one rank: for more, start with mpirun -n RANKS"
    processes = f" over {jax.process_count()} processes" if jax.process_count() > 1 else ""
    parts = f", the batch in {backend.data} parts" if backend.data > 1 else ""
    return f"{backend.kind}{processes}{parts}"


def _updates(optimizer: Optimizer) -> str:
    """How parameters are updated."""
    if optimizer.name != "published":
        return f"{optimizer.name}, {optimizer.schedule} rate {optimizer.learning_rate:g}"
    memory = f" of {optimizer.memory} pairs" if optimizer.hessian == "l-bfgs" else ""
    return f"the published loop, {optimizer.hessian}{memory}, steps from {optimizer.initial_step:g}"


def _hierarchy(config: Config, section: str) -> str:
    """The levels of the solver or the adjoint, and what is done on them."""
    solver, sizes = getattr(config, section), grid_sizes(config, section)
    step = f"picard({solver.sweeps})" if solver.coarse_step == "picard" else solver.coarse_step
    levels = f"{' > '.join(map(str, sizes))} layers, {solver.coarse_params} and {step} on coarse levels"
    if config.training.schedule == "predict_then_sweep":
        return levels
    cycles = f"{solver.cycles} {solver.cycle}-cycle{'s' if solver.cycles > 1 else ''}"
    cycles += " from the coarsest level" if solver.skip_first_down else ""
    # A cycle makes so many further intervals exact, however bad the coarse levels are.
    exact = solver.cycles * (1 + solver.cf_relaxations[0]) >= sizes[1]
    return f"{cycles} over {levels}{', exact by their number' if exact else ''}"


def summary_lines(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """The end of a run in words."""
    first = summary["first_iteration_seconds"]
    compiling = "" if first is None else f", {first:.1f} s of it compiling"
    return [
        "",
        f"exact validation accuracy {summary['exact_validation_accuracy']:.2%}; training accuracy "
        f"{summary['exact_train_accuracy']:.2%} exact, {summary['inexact_accuracy']:.2%} inexact; "
        f"training loss {summary['exact_train_loss']:.5f} exact, {summary['inexact_loss']:.5f} inexact",
        f"training took {summary['seconds']:.1f} s for {summary['iteration']} iterations{compiling}; everything is in "
        f"{folder}",
        *_memory(summary["memory"]),
    ]


def _memory(used: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each of several processes held, in MiB."""
    if len(used) == 1:
        return []
    kinds = ", ".join(
        f"{kind.replace('_', ' ')} {' / '.join(f'{u[kind] / 2**20:.1f}' for u in used)}" for kind in used[0]
    )
    return [f"MiB on each process: {kinds}"]
