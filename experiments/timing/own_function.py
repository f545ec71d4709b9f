"""A network of the user's own, named on the command line as `module:function`."""

import re
from typing import Any

import jaxmgrit as jm
from experiments.errors import ConfigError
from experiments.foundation.functions import PATTERN, SIGNATURES, own_function


def is_function(word: str) -> bool:
    """Whether a word names a function rather than a config's file."""
    return re.match(PATTERN, word) is not None


def network(word: str) -> tuple[Any, Any, Any, Any]:
    """(step, theta, u0, h) as the function returns them.

    Raises:
        ConfigError: There is no such function, it fails, or it returns something else.
    """
    expected = f"expected a function plan{SIGNATURES['plan']}"
    function = own_function(word, "function", "plan")
    try:
        returned = function()
    except Exception as error:  # whatever the user's function raises
        raise ConfigError(f"{word}() fails: {type(error).__name__}: {error}. {expected}.") from error
    if not isinstance(returned, tuple | list) or len(returned) != 4:
        size = f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
        raise ConfigError(f"{word}() returned a {type(returned).__name__}{size}: {expected}.")
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
        raise ConfigError(f"{word}: {error} Expected a function plan{SIGNATURES['plan']}.") from error
