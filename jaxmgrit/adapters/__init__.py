"""Modules of Flax NNX, Flax linen and Equinox, and plain pytrees, as what this library takes.

`jm.adapters.nnx`, `jm.adapters.linen` and `jm.adapters.equinox` are imported when they are first used.
"""

import importlib
from types import ModuleType

from jaxmgrit.adapters.stack import init_layers, residual, stack_layers

__all__ = ["equinox", "init_layers", "linen", "nnx", "residual", "stack_layers"]


def __getattr__(name: str) -> ModuleType:
    # On demand: neither framework is needed by the rest of the library.
    if name in ("equinox", "linen", "nnx"):
        return importlib.import_module(f"jaxmgrit.adapters.{name}")
    raise AttributeError(f"module 'jaxmgrit.adapters' has no attribute {name!r}")
