"""Use a trained network: `python -m experiments.predict RUN --input FILE [--output FILE] [--iteration N]`.

FILE holds inputs as the training's own files do, without labels: a .csv with named columns, or the array `x` of a .npz
or .npy; they are scaled as the training points were. Prints, or writes to --output, a line `point,class,probability`
for each; or the point and its numbers, where such are predicted, in their own units. For a run on text FILE is a text,
which the network goes on with. Exit code 0: done; 2: it cannot be done.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import jaxmgrit as jm
from experiments import problems
from experiments.config.arguments import Parser, at_least, output_file, path
from experiments.config.reader import read_run
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.files import is_file, write_output
from experiments.problems.file import File, read_inputs
from experiments.problems.sources import read_bytes
from experiments.processes.launchers import refuse_several
from experiments.runs import terminal
from experiments.runs.newest import load_trained
from experiments.runs.resume import load
from experiments.runs.sample import sample
from experiments.runs.terminal import ERR, OUT
from experiments.training import build
from experiments.training.evaluation import predict, probabilities


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser("python -m experiments.predict", "%(prog)s RUN --input FILE [--output FILE] [--problem.file PLACE]")
    parser.add_argument("RUN", help="folder of a run")
    parser.add_argument("--input", type=path, help="file of inputs, or of a text to go on with")
    parser.add_argument("--output", type=output_file, help="file to write; without it lines are printed")
    parser.add_argument("--iteration", type=at_least(0), help="of the parameters; without it the latest there are")
    parser.add_argument("--length", type=at_least(1), default=400, help="characters to write, of a run on text")
    try:
        options, rest = parser.split(sys.argv[1:] if arguments is None else arguments)
        refuse_several("experiments.predict")
        if options.input is None:
            raise ConfigError("--input: missing; expected a file of inputs. See --help for the options.")
        config, folder = read_run(["--resume", options.RUN, *rest], "experiments.predict")
        assert folder is not None
        build.prepare_jax(config)
        build.check_devices()
        data = load(config, folder)
        params, _, network, remarks = load_trained(config, data, folder, options.iteration)
        for remark in remarks:
            ERR.say(f"not used: {remark}")
        if config.problem.name == "text":
            text = written(network, data, params, options.input, options.length)
        else:
            text = classified(network, data, params, options.input)
        if options.output is None:
            OUT.write(text)
            OUT.flush()
            # There is nothing else that it leaves.
            return 2 if OUT.failed else 0
        else:
            write_output(options.output, text)
    except ConfigError as error:
        ERR.say("config error:", *(f"  {line}" for line in str(error).splitlines()))
        return 2
    except OSError as error:
        ERR.say(f"{error.filename}: {error.strerror}")
        return 2
    return 0


def classified(config: Config, data: problems.Data, params: jm.Params, path: Path) -> str:
    """Lines of point, class and probability of the inputs in a file; or of point and the numbers that are predicted.

    Raises:
        ConfigError: They are not inputs of this network.
    """
    shape = data.train.x.shape[1:]
    given = read_inputs(path, config.problem if isinstance(config.problem, File) else None, shape[0])
    try:
        x = given if data.prepare is None else data.prepare(given)
    except ValueError:  # shapes that do not go together
        x = given
    # Grey images may come without the axis of their one channel.
    x = x[..., None] if x.ndim == 3 and len(shape) == 3 else x
    if x.shape[1:] != shape or x.dtype.kind not in "biuf":
        raise ConfigError(
            f"--input {path}: expected inputs of shape (points, {', '.join(map(str, shape))}), numbers as in training, "
            f"found {given.dtype} of shape {given.shape}."
        )
    x = x.astype(np.float64)
    # Of what the training's precision cannot hold, or is no number, the network would make a class nevertheless.
    if len(wrong := np.flatnonzero(~(np.abs(x) <= np.finfo(config.dtype).max).reshape(len(x), -1).all(axis=1))):
        raise ConfigError(
            f"--input {path}: expected finite numbers that {config.dtype} can hold, but those of point {wrong[0]} are "
            "not (after scaling). Correct them."
        )
    if data.scale is not None:
        numbers = predict(build.problem(config), params, x, config.dtype)
        rows = enumerate(numbers * data.scale.deviation + data.scale.mean)
        lines = [",".join([str(i), *(f"{value:.7g}" for value in row)]) for i, row in rows]
        return "\n".join([",".join(["point", *data.names]), *lines, ""])
    shares = probabilities(build.problem(config), params, x, config.dtype)
    best = shares.argmax(axis=1)
    lines = [f"{i},{data.names[k]},{shares[i, k]:.4f}" for i, k in enumerate(best)]
    return "\n".join(["point,class,probability", *lines, ""])


def written(config: Config, data: problems.Data, params: jm.Params, path: Path, length: int) -> str:
    """The end of a text, and what the network goes on with.

    Raises:
        ConfigError: The text has characters that the training's had not.
    """
    if not is_file(path):
        raise ConfigError(f"--input {path}: no such file. Name a text in UTF-8.")
    # What is not UTF-8 becomes U+FFFD, which the message below then names.
    text = read_bytes(path).decode("utf-8", errors="replace").replace("\r\n", "\n")
    numbers = {name: number for number, name in enumerate(data.names)}
    if unknown := sorted(set(text) - set(numbers)):
        raise ConfigError(f"--input {path}: the text that was trained on has no {unknown[0]!r}. Leave it out.")
    if not text:
        raise ConfigError(f"--input {path}: expected a text to go on with, found none.")
    prompt = np.array([[numbers[character] for character in text]], np.int32)
    drawn = sample(build.problem(config), params, prompt, length, config.seed)[0]
    return "".join(data.names[code] for code in drawn) + "\n"


if __name__ == "__main__":
    terminal.run(main)
