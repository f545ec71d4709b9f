"""The examples in the library's docstrings run, and give what they say."""

import doctest
import importlib
import pkgutil

import jax
import pytest

import jaxmgrit

MODULES = ["jaxmgrit", *(module.name for module in pkgutil.walk_packages(jaxmgrit.__path__, "jaxmgrit."))]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples():
    """The docstrings that hold an example."""
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:  # an adapter of a framework that is not installed
            continue
        yield from (test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples)


def marked():
    """The examples by name; those that train are slow."""
    for example in examples():
        name = example.name.removeprefix("jaxmgrit.")
        slow = name.startswith(("training.", "analysis."))
        yield pytest.param(example, id=name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("example", list(marked()))
def test_example(example):
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        failed, _ = runner.run(example)
    assert failed == 0, "see the output above"
