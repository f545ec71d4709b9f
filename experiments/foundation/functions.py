"""Functions of the user's own that a config names as `package.module:function`.

They are imported as any program imports them: from what is installed, PYTHONPATH and the folder that the program was
started in. What lies in the folder of a run is not: a run that someone else has made must not bring programs along.
"""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from experiments.errors import ConfigError

PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
MARK = "metrics.jsonl"  # lies in every folder of a run
SIGNATURES = {  # by the last word of the key: what the function is called with, and what it returns
    "loss": "(outputs, y) -> scalar, the mean over the batch",
    "coarse_step": "(step, theta, u, h, m) -> u_next, one coarse layer in place of m",
    "coarse_params": "(theta of m layers, leading axis m) -> theta of one coarse layer",
    "network": "(layers, width) -> (opening, step, outputs, init), with opening(theta, x) -> u0, step(theta, u, h) -> "
    "u_next, outputs(theta, u) -> logits (batch, ..., classes), init(key, shape, classes) -> jm.Params of dicts",
    "plan": "() -> (step, theta, u0, h), with step(theta, u, h) -> u_next, theta's leaves with leading axis N, u0 the "
    "first state, h a scalar or one step size per layer",
    "problem": "(seed) -> (x, y, x_validation, y_validation), arrays with a point per row",
}
ARGUMENTS = {"loss": 2, "coarse_step": 5, "coarse_params": 1, "network": 2, "plan": 0, "problem": 1}

KEYS = (
    "problem.function",
    "network.kind",
    "training.loss",
    *(f"{section}.{key}" for section in ("solver", "adjoint") for key in ("coarse_params", "coarse_step")),
)

Function = Annotated[str, Field(pattern=PATTERN)]


def is_reference(value: object) -> bool:
    """Whether a config's value names a function of the user's own."""
    return isinstance(value, str) and ":" in value


def references(config: BaseModel) -> list[str]:
    """The functions of the user's own that a config names, each once."""
    named: list[object] = []
    for key in KEYS:
        section, name = key.split(".")
        named.append(getattr(getattr(config, section), name, None))
    return list(dict.fromkeys(str(name) for name in named if is_reference(name)))


@functools.cache
def own_function(reference: str, key: str, kind: str) -> Callable[..., Any]:
    """Import a function, and check that it can be called as it will be.

    Args:
        reference: `package.module:function`.
        key: Of the config, for messages.
        kind: One of `SIGNATURES`.

    Raises:
        ConfigError: It cannot be imported, lies in the folder of a run, or takes other arguments.
    """
    module, _, name = reference.partition(":")
    says, expected = f"{key} = {reference!r}", f"expected a function {kind}{SIGNATURES[kind]}"
    # Before the import, which would run the module already.
    path = location(module)
    if path is not None and any((folder / MARK).exists() for folder in path.parents):
        raise ConfigError(f"{says}: {path} lies in the folder of a run, from where nothing is imported. Move it.")
    try:
        function = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{says}: {expected}; there is no module {error.name!r}. Start in the folder that holds it, install it or "
            "set PYTHONPATH."
        ) from None
    except AttributeError:
        raise ConfigError(f"{says}: {expected}; the module has no {name!r}. Correct the name.") from None
    except (Exception, SystemExit) as error:  # a module is a program: importing it may raise anything
        raise ConfigError(f"{says}: cannot be imported: {type(error).__name__}: {error}. Correct the module.") from None
    try:
        # Bound, not called: what it makes of real arguments shows when it is used.
        inspect.signature(function).bind(*[None] * ARGUMENTS[kind])
    except (TypeError, ValueError):
        try:
            given = f"{name}{inspect.signature(function)}" if inspect.isroutine(function) else repr(function)[:60]
        except ValueError:  # some of Python's own functions do not tell their arguments
            given = repr(function)[:60]
        raise ConfigError(f"{says}: {expected}, given {given}. Change its arguments.") from None
    return function


def location(module: str) -> Path | None:
    """The file of a module, without importing it; None where there is none."""
    top, *rest = module.split(".")
    try:
        # Of the outermost package only: to find a submodule its packages would be imported.
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    return path.parent.joinpath(*rest).with_suffix(".py").resolve() if rest else path.resolve()
