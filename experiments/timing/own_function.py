"""A network of the user's own, named on the command line as `module:function`."""

import importlib
import os
import re
import sys
from typing import Any

import jaxmgrit as jm
from experiments.errors import ConfigError

_WORD = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_EXPECTED = (
    "expected module:function with function() -> (step, theta, u0, h): step(theta, u, h) -> u_next, theta with leading "
    "axis N on every leaf, u0 the first state, h a scalar or one step size per layer"
)


def is_function(word: str) -> bool:
    """Whether a word names a function rather than a config's file."""
    return _WORD.fullmatch(word) is not None


def network(word: str) -> tuple[Any, Any, Any, Any]:
    """(step, theta, u0, h) as the function returns them.

    Args:
        word: module:function; modules are looked for in the current folder too.

    Raises:
        ConfigError: There is no such module or function, it fails, or it returns something else.
    """
    name, _, attribute = word.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(f"{word}: module {name!r} cannot be imported ({_short(error)}); {_EXPECTED}.") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        what = "is not a function" if hasattr(module, attribute) else "does not exist"
        raise ConfigError(f"{word}: {attribute!r} {what} in {name!r}; {_EXPECTED}.")
    try:
        returned = function()
    except Exception as error:  # whatever the user's function raises
        raise ConfigError(f"{word}: {attribute}() fails ({_short(error)}); {_EXPECTED}.") from error
    if not isinstance(returned, tuple | list) or len(returned) != 4:
        size = f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
        raise ConfigError(f"{word}: {attribute}() returned a {type(returned).__name__}{size}; {_EXPECTED}.")
    step, theta, u0, h = returned
    return step, theta, u0, h


def advice(word: str, **asked: Any) -> jm.Advice:
    """Advice on the user's network; further arguments as of `jm.advise`.

    Raises:
        ConfigError: There is no such function, or what it returns does not fit together.
    """
    step, theta, u0, h = network(word)
    try:
        return jm.advise(step, theta, u0, h=h, **asked)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{word}: {error}\n{_EXPECTED}.") from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(": ")
