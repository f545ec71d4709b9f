"""Residuals over multigrid cycles for ever deeper networks: `python -m experiments.convergence [--layers 64 4096 ...]`.

Layers are sampled from one smooth theta(t), so a deeper network is a finer discretisation of the same differential
equation; the number of cycles to a given reduction then does not grow with the number of layers. States and adjoints
are solved from a cold start. A new folder gets a picture, the residuals (residuals.json) and a table on the terminal.
Exit code 0: done; 2: the arguments cannot be used.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxmgrit as jm
from experiments.config.arguments import Parser, above, at_least, path
from experiments.errors import ConfigError
from experiments.foundation.files import make_folder
from experiments.networks.smooth import smooth_layers, tanh_step
from experiments.processes.launchers import refuse_several
from experiments.runs import terminal

KINDS = {"state": "State", "adjoint": "Adjoint"}
LAYERS = [64, 128, 256, 512, 1024, 2048, 4096]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        options = _options(sys.argv[1:] if arguments is None else arguments)
        # Residuals fall below what float32 can tell from rounding.
        jax.config.update("jax_enable_x64", True)
        folder = options.folder or Path(f"runs/convergence-{datetime.datetime.now():%Y%m%d-%H%M%S}")
        _make(folder)
    except ConfigError as error:
        print(f"argument error:\n  {error}", file=sys.stderr)
        return 2
    histories = {}
    for layers in tqdm(options.layers, desc="networks", disable=not sys.stderr.isatty()):
        histories[layers] = residuals(layers, options)
    by_kind = {kind: {layers: history[kind] for layers, history in histories.items()} for kind in KINDS}
    given = {**vars(options), "folder": str(folder)}
    (folder / "residuals.json").write_text(json.dumps({"options": given, **by_kind}, indent=1) + "\n")
    draw(folder / "convergence.png", by_kind, options)
    print(*table(by_kind, options), sep="\n")
    print(f"everything is in {folder}")
    return 0


def residuals(layers: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Norms recorded by the cycles of the state's solve, and of the adjoint's at the exact state."""
    theta, step = smooth_layers(layers, options.width, options.seed), tanh_step()
    random = np.random.default_rng(options.seed + 1)
    u0, lam = (jnp.asarray(random.normal(size=(options.batch, options.width))) for _ in range(2))
    solver = jm.MGRIT(
        options.coarsening_factor,
        cf_relaxations=(options.cf_relaxations, options.cf_relaxations),
        cycles=options.cycles,
        cycle=options.cycle,
    )
    h = options.final_time / layers
    state = jm.solve(step, theta, u0, h=h, solver=solver)
    exact = jm.solve(step, theta, u0, h=h, solver=jm.Sequential(segment=options.coarsening_factor))
    adjoint = jm.adjoint_solve(step, theta, exact, lam, h=h, solver=solver)
    return {"state": np.asarray(state.residual_norms).tolist(), "adjoint": np.asarray(adjoint.residual_norms).tolist()}


def cycles_to(history: Sequence[float], reduction: float) -> int | None:
    """How many cycles until a residual is `reduction` times the first, None where it never is."""
    below = [k for k, norm in enumerate(history) if norm <= reduction * history[0]]
    return below[0] if below else None


def table(by_kind: dict[str, dict[int, list[float]]], options: argparse.Namespace) -> list[str]:
    """One line per network: the cycles to the asked reduction, and the last residual."""

    def cell(history: list[float]) -> str:
        k = cycles_to(history, options.reduction)
        return f"{k if k is not None else f'> {len(history) - 1}':>7}  {history[-1] / history[0]:14.1e}"

    lines = ["", f"cycles to {options.reduction:g} of the first residual, and what the last one is of it"]
    lines.append(f"{'layers':>8}  {'state':>7}  {'last':>14}  {'adjoint':>7}  {'last':>14}")
    for layers in options.layers:
        lines.append(f"{layers:8d}  {cell(by_kind['state'][layers])}  {cell(by_kind['adjoint'][layers])}")
    return lines


def draw(path: Path, by_kind: dict[str, dict[int, list[float]]], options: argparse.Namespace) -> None:
    """The residuals over the cycles, a line per network, state beside adjoint."""
    from experiments.foundation.drawing import Figure, colormaps

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    shades = colormaps["viridis"](np.linspace(0.0, 0.9, len(options.layers)))
    markers = "osD^v<>ph*"
    for axis, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for i, (layers, history) in enumerate(by_kind[kind].items()):
            relative = np.asarray(history) / history[0]
            shown = relative > 0  # what is exactly zero has no place on a logarithmic axis
            axis.semilogy(
                np.flatnonzero(shown),
                relative[shown],
                marker=markers[i % len(markers)],
                markersize=5,
                color=shades[i],
                label=f"N = {layers}",
            )
        axis.axhline(options.reduction, color="gray", linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="cycle")
        # There are no half cycles.
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("residual / first residual")
    axes[1].legend()
    relaxation = "FC" * options.cf_relaxations + "F"
    figure.suptitle(
        f"{options.cycle}-cycles, m = {options.coarsening_factor}, {relaxation}, all levels, "
        f"T = {options.final_time:g}, one smooth theta(t)"
    )
    figure.savefig(path, dpi=120)


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}. See --help.")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        "python -m experiments.convergence", description="Residuals over multigrid cycles for ever deeper networks."
    )
    parser.add_argument("--layers", type=at_least(2), nargs="+", default=LAYERS, help="numbers of layers N")
    parser.add_argument("--final-time", type=above(0), default=1.0, help="T; h = T/N")
    parser.add_argument("--coarsening-factor", type=at_least(2), default=4, help="on all levels")
    parser.add_argument("--cf-relaxations", type=at_least(0), default=1, help="0: F, 1: FCF, on all levels")
    parser.add_argument("--cycles", type=at_least(1), default=10, help="how many are done")
    parser.add_argument("--cycle", choices=("V", "F"), default="V", help="V- or F-cycles")
    parser.add_argument("--reduction", type=above(0), default=1e-8, help="what the table counts to")
    parser.add_argument("--width", type=at_least(1), default=8, help="features of a state")
    parser.add_argument("--batch", type=at_least(1), default=32, help="states at a time")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of theta(t) and the states")
    parser.add_argument("--folder", type=path, help="new folder for the results (default: runs/convergence-TIME)")
    options = parser.parse(arguments)
    refuse_several("experiments.convergence")
    for layers in options.layers:
        if layers // options.coarsening_factor < 2:
            raise ConfigError(
                f"--layers {layers}: expected at least {2 * options.coarsening_factor}, two intervals of "
                f"--coarsening-factor {options.coarsening_factor}. Take more layers or a smaller factor."
            )
    if len(set(options.layers)) < len(options.layers):
        raise ConfigError(f"--layers {' '.join(map(str, options.layers))}: one is given twice. Keep one of them.")
    return options


def _make(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--folder {folder}: expected a new or empty folder. Name another.")
    make_folder(folder)


if __name__ == "__main__":
    terminal.run(main)
