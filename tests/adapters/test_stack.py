"""What no framework is needed for: plain pytrees, versions, and imports only when used."""

import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxmgrit as jm
from jaxmgrit.adapters import framework

ROOT = Path(__file__).parents[2]


def test_layers_are_initialised_each_from_its_own_key():
    init = lambda key: {"w": jax.random.normal(key, (3, 3))}  # noqa: E731
    stack, keys = jm.adapters.init_layers(init, 4, jax.random.key(0)), jax.random.split(jax.random.key(0), 4)
    assert jnp.array_equal(stack["w"], jm.adapters.stack_layers([init(key) for key in keys])["w"])
    with pytest.raises(ValueError, match="init_layers: depth=0"):
        jm.adapters.init_layers(init, 0, jax.random.key(0))
    with pytest.raises(ValueError, match="layer 1 is unlike layer 0"):
        jm.adapters.stack_layers([{"w": jnp.ones(3)}, {"v": jnp.ones(3)}])


def test_frameworks_are_imported_only_when_used():
    program = "import sys, jaxmgrit, jaxmgrit.adapters; print({'flax', 'equinox'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "set()", run.stderr


def test_a_wrong_version_and_a_missing_framework_are_named(monkeypatch):
    monkeypatch.setattr(framework, "version", lambda package: "0.10.7")
    with pytest.raises(ImportError, match=r"flax==0.10.7 is too old, flax>=0.12 is supported; install it: pip"):
        framework.check_version("flax")
    monkeypatch.setattr(framework, "version", lambda package: "0.13.0rc1")
    framework.check_version("equinox")

    def missing(package):
        raise framework.PackageNotFoundError(package)

    monkeypatch.setattr(framework, "version", missing)
    with pytest.raises(ImportError, match=r"equinox is not installed; install it: pip install 'jaxmgrit\[adapters\]'"):
        framework.check_version("equinox")
    with pytest.raises(AttributeError, match="no attribute 'haiku'"):
        _ = jm.adapters.haiku


def test_the_versions_of_the_extra_are_those_that_are_checked():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    expected = [f"{package}>={'.'.join(map(str, least))}" for package, least in framework.LEAST.items()]
    assert sorted(extras["adapters"]) == sorted(expected)
