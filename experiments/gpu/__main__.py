"""Measure on a GPU what is to be known of one: `python -m experiments.gpu [--predict] [--parts NAME ...] [--folder F]`.

One-shot steps of smooth layers (N = 256, 1024, 4096; width 8, 64; 32, 256, 5000 points), Picard sweeps over rough ones
(N = 1024), Newton's method on a GRU (10000 steps; 4 and 16 components, 16 samples) and the zoo, each by its own command
against the tuned sequential program in one run. Beside the ratios stands what a model says beforehand (`predicted`).
With `--predict` the model's alone, for which no GPU is needed. A folder gets every command's file, `gpu.json` with the
device's name and versions, and the table as `gpu.md`. Exit code 0: done; 1: some part failed, all others are there; 2:
there is no GPU, or the arguments cannot be used.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxmgrit as jm
from experiments.config.arguments import Parser, path
from experiments.errors import ConfigError
from experiments.foundation.files import make_folder, write_output
from experiments.gpu.predicted import Gpu, Layer, newton, one_shot
from experiments.processes.launchers import refuse_several
from experiments.runs import terminal

LAYERS = {256: 16, 1024: 32, 4096: 64}  # N: m
WIDTHS, BATCHES = (8, 64), (32, 256, 5000)
ROUGH, SWEEPS, KEPT = 1024, (1, 2), (16, 32)
STEPS, SIZES, FACTORS = 10_000, ((4, 16), (16, 16)), (16, 32, 64)
ASK = """
import json, jax, jaxlib, jaxmgrit
device = jax.devices()[0]
versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "jaxmgrit": jaxmgrit.__version__}
print(json.dumps({"device": device.device_kind, "platform": device.platform, **versions}))
"""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        network: What is computed.
        method: How.
        predicted: Time over the tuned sequential one by the model; None where it says nothing.
        measured: Likewise by measurement.
        milliseconds: Of the tuned sequential program.
    """

    network: str
    method: str
    predicted: float | None = None
    measured: float | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Job:
    """A command and what its file says.

    Attributes:
        name: Of the file.
        words: The module and its arguments, without the file's.
        rows: From the file's contents to rows; None: what is predicted alone.
    """

    name: str
    words: list[str]
    rows: Callable[[dict[str, Any] | None], list[Row]]


def smooth(platform: str) -> Iterator[Job]:
    """One-shot steps of smooth layers."""
    for layers, m in LAYERS.items():
        words = ["experiments.benchmark", "--layers", str(layers), "--factor", str(m), "--only", "then sweep, 2 levels"]
        solver = jm.MGRIT(m, levels=2, coarse_params=jm.average, coarse_step=jm.midpoint)
        solvers = {f"predict, then sweep, 2 levels, m = {m}": solver}
        yield _benchmark(f"smooth_{layers}", words, platform, layers, (WIDTHS, BATCHES), solvers)


def rough(platform: str) -> Iterator[Job]:
    """Picard sweeps over layers that have nothing in common."""
    words = ["experiments.benchmark", "--layers", str(ROUGH), "--factor", str(max(KEPT)), "--independent"]
    words += ["--only", "picard", "--sweeps", *map(str, SWEEPS), "--kept", *map(str, KEPT)]
    solvers = {
        f"predict, then sweep, picard({p}), m = {m}{', inner values' * inner}": jm.MGRIT(
            m, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(p, inner)
        )
        for p in SWEEPS
        for m in KEPT
        for inner in (False, True)
    }
    yield _benchmark(f"rough_{ROUGH}", words, platform, ROUGH, (WIDTHS, BATCHES[:2]), solvers)


def recurrences(platform: str) -> Iterator[Job]:
    """Newton's method on a GRU."""
    for m in FACTORS:
        words = ["experiments.recurrences", "--layers", str(STEPS), "--factor", str(m)]
        words += ["--sizes", *(f"{d}:{b}" for d, b in SIZES)]

        def rows(made: dict[str, Any] | None, m: int = m) -> list[Row]:
            compared = []
            for i, (width, batch) in enumerate(SIZES):
                network = f"GRU, N = {STEPS}, d = {width}, batch {batch}"
                row = made["rows"][i] if made else {}
                for key, ratio in newton(Gpu(), STEPS, width, batch, m).items():
                    method = {"newton": "Newton", "prefix": "sequential, Newton's adjoint"}[key]
                    compared.append(Row(network, f"{method}, m = {m}", ratio, row.get(key), row.get("best_ms")))
            return compared

        yield Job(f"newton_{m}", words, rows)


def zoo(platform: str) -> Iterator[Job]:
    """The default in place of a scan, on many networks."""

    def rows(made: dict[str, Any] | None) -> list[Row]:
        if not made:
            return []
        method = "jm.propagate in place of a scan"
        return [Row(r["network"], method, None, r["time_over_best"], r["best_ms"]) for r in made["rows"]]

    yield Job("zoo", ["experiments.zoo"], rows)


PARTS: dict[str, Callable[[str], Iterator[Job]]] = {
    "smooth": smooth,
    "rough": rough,
    "recurrences": recurrences,
    "zoo": zoo,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser("python -m experiments.gpu", description="What is to be known of a GPU, and what a model says.")
    parser.add_argument("--predict", action="store_true", help="the model's figures alone; no GPU is needed")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help="of the measurements")
    parser.add_argument("--platform", choices=["gpu", "cpu"], default="gpu", help="cpu: to try the command itself")
    parser.add_argument("--folder", type=path, default=Path("runs/gpu"), help="for files and table")
    try:
        options = parser.parse(sys.argv[1:] if arguments is None else arguments)
        refuse_several("experiments.gpu")
        make_folder(options.folder)
        facts = {} if options.predict else _facts(options.platform)
    except ConfigError as error:
        print("gpu:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    rows, failed = [], []
    for job in (job for part in options.parts for job in PARTS[part](options.platform)):
        made = None if options.predict else _run(job, options)
        if made is None and not options.predict:
            failed.append(job.name)
        rows += job.rows(made)
        # After every command, so that an interruption loses but the one that runs.
        record = {**facts, "rows": [vars(row) for row in rows]}
        write_output(options.folder / "gpu.json", json.dumps(record, indent=1) + "\n")
        write_output(options.folder / "gpu.md", table(facts, rows) + "\n")
    print(table(facts, rows))
    if failed:
        print(f"gpu: failed: {', '.join(failed)}; see above", file=sys.stderr)
    return 1 if failed else 0


def table(facts: dict[str, str], rows: Sequence[Row]) -> str:
    """In Markdown, the device's name above it."""
    lines = [", ".join([facts["device"], *(f"{k} {v}" for k, v in facts.items() if "jax" in k)])] if facts else []
    lines += ["", "| network | method | model | measured | sequential, ms |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        figures = (f"{x:.3g}" if x is not None else "" for x in (row.predicted, row.measured, row.milliseconds))
        lines.append(f"| {row.network} | {row.method} | {' | '.join(figures)} |")
    return "\n".join(lines).strip()


def _benchmark(
    name: str,
    words: list[str],
    platform: str,
    layers: int,
    sizes: tuple[Sequence[int], Sequence[int]],
    solvers: dict[str, jm.MGRIT],
) -> Job:
    widths, batches = sizes
    words = [*words, "--platform", platform, "--layouts", "batch_first", "--repeats", "5"]
    words += ["--width", *map(str, widths), "--batch", *map(str, batches)]

    def rows(made: dict[str, Any] | None) -> list[Row]:
        cases = {(c["case"]["width"], c["case"]["batch"]): c for c in made["cases"]} if made else {}
        compared = []
        for width in widths:
            for batch in batches:
                case = cases.get((width, batch))
                ratios = {p["name"]: p["ratio"] for p in case["programs"]} if case else {}
                tuned = case["tuned"]["milliseconds"] if case else None
                for method, solver in solvers.items():
                    model = one_shot(Gpu(), layers, Layer(width, batch), solver)
                    network = f"N = {layers}, width {width}, batch {batch}"
                    compared.append(Row(network, method, model, ratios.get(method), tuned))
        return compared

    return Job(name, words, rows)


def _facts(platform: str) -> dict[str, str]:
    """Name and versions of what is measured on.

    Raises:
        ConfigError: There is no such device.
    """
    asked = subprocess.run([sys.executable, "-c", ASK], env=_env(platform), capture_output=True, text=True, check=False)
    facts: dict[str, str] = json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else {}
    if facts.get("platform") != platform:
        last = asked.stderr.strip().splitlines()[-1:] or [f"its devices are {facts.get('platform')}s"]
        raise ConfigError(
            f"JAX has no {platform} here: {last[0]}\n"
            "Install jaxmgrit[cuda] on a machine with one; --predict needs none."
        )
    return facts


def _run(job: Job, options: argparse.Namespace) -> dict[str, Any] | None:
    """A command's file, or None if it failed."""
    file = options.folder / f"{job.name}.json"
    file.unlink(missing_ok=True)
    flag = "--json" if job.words[0] == "experiments.benchmark" else "--output"
    print(f"\n$ python -m {' '.join(job.words)}", flush=True)
    command = [sys.executable, "-m", *job.words, flag, str(file)]
    done = subprocess.run(command, env=_env(options.platform), check=False)
    if done.returncode:
        return None
    made: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return made


def _env(platform: str) -> dict[str, str]:
    # Processes share the device: none may take most of its memory beforehand.
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {**env, "JAX_PLATFORMS": "cpu"} if platform == "cpu" else env


if __name__ == "__main__":
    terminal.run(main)
