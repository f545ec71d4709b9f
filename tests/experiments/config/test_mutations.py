"""Configs changed at random: each is accepted, or refused with a message that names a key; never a traceback."""

import copy
import os
from pathlib import Path

import jax
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import config
from experiments.config import describe as keys
from experiments.errors import ConfigError
from experiments.train import main
from experiments.training import build

CASES = int(os.environ.get("JAXMGRIT_CASES", "150"))
SHIPPED = [yaml.safe_load(file.read_text()) for file in sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))]
KNOWN = sorted(keys.fields())
SECTIONS = sorted({key.partition(".")[0] for key in KNOWN if "." in key})
NAMES = st.one_of(
    st.sampled_from(KNOWN),
    st.sampled_from(KNOWN).map(lambda key: key[:-1]),
    st.sampled_from(SECTIONS),
    st.sampled_from(SECTIONS).map(lambda section: section + ".nonsense"),
    st.text("abcdefgh_", min_size=1, max_size=8),
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([0, 1, 2, 4, 64, 10**9, -(10**9), 2**40, 2**70]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1e-3, 0.5, 1.0, 1e308, 5e-324]),
    st.text(max_size=5),
    st.sampled_from(
        "adam sgd V F injection average midpoint same_step all_layers picard zero_step one_shot sequential cosine tanh "
        "relu float64 float32 local mesh warm cold level_sets mnist cycles_then_gradient predict_then_sweep null "
        "true".split()
    ),
    st.lists(st.integers(-1, 9), max_size=3),
    st.dictionaries(st.sampled_from(["name", "every", "x"]), st.integers(0, 5), max_size=2),
)


def put(values, key, value):
    """Set a dotted key, replacing what is in the way."""
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[name] = value


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("configs") / "mutated.yaml"


@pytest.mark.slow
@settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    shipped=st.sampled_from(SHIPPED),
    changes=st.dictionaries(NAMES, VALUES, min_size=1, max_size=3),
)
def test_a_changed_config_is_accepted_or_refused_by_a_key(shipped, changes, file):
    values = copy.deepcopy(shipped)
    for key, value in changes.items():
        put(values, key, value)
    file.write_text(yaml.safe_dump(values))
    try:
        read = config.read([str(file)], "experiments.train")
        if read.backend.kind != "mpi":
            build.trainer(read)
    except ConfigError as error:
        said = str(error)
        below = [f"{key}.{name}" for key, value in changes.items() if isinstance(value, dict) for name in value]
        named = [*KNOWN, *SECTIONS, *changes, *below]
        assert any(f"{key} = " in said or f"{key}: " in said for key in named), said
        assert "Traceback" not in said
    else:
        config.write(read, file)
        assert config.read([str(file)], "experiments.train") == read


TINY = """
iterations: 2
problem: {name: level_sets, train_per_class: 4, validation_per_class: 2}
network: {layers: 9, width: 3}
solver: {coarsening_factor: 3, cycles: 1}
output: {pictures: false}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--network.layers 1 --training.method sequential --network.activation relu",
        "--solver.coarsening-factor 2 2 --solver.cycle F --solver.cf-relaxations 1 2 --adjoint.cycles 3",
        "--optimizer.name sgd --training.batch-size 7 --training.start cold --dtype float64",
        "--control.active true --control.tolerance 1e-9 --optimizer.warmup 1",
        "--solver.rtol 1e-3 --solver.cycles 9 --penalty.gamma-tik 1e-3 --backend.devices 3",
        "--recovery.attempts 0 --checkpoints.every 1 --checkpoints.keep 1 --evaluation.points 3",
    ],
)
def test_what_is_accepted_runs(words, tmp_path):
    before = jax.config.jax_enable_x64
    (tmp_path / "tiny.yaml").write_text(TINY)
    try:
        given = [str(tmp_path / "tiny.yaml"), *words.split(), "--output.folder", str(tmp_path / "run")]
        assert main(given) == 0
    finally:
        jax.config.update("jax_enable_x64", before)
