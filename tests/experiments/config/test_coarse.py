"""The keys of rough layers: what they make, which of them fit together, and old configs without them."""

import pytest

import jaxmgrit as jm
from experiments import config
from experiments.config.ladder import fused_sweeps, ladder
from experiments.config.solver import solver
from experiments.errors import ConfigError
from experiments.training import build
from experiments.training.controller import Controller

ROUGH = """
problem: {name: level_sets, train_per_class: 10, validation_per_class: 5}
network: {layers: 32, width: 4, initialisation: independent}
training: {schedule: predict_then_sweep}
solver: {coarsening_factor: 8, levels: 2, coarse_params: all_layers, coarse_step: picard}
"""


def read(tmp_path, *words, text=ROUGH):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return config.read([str(file), *words], "experiments.train")


def test_keys_make_the_librarys_solver_and_the_adjoint_is_as_the_solver(tmp_path):
    words = ["--solver.sweeps", "3", "--solver.exact-first", "1", "--adjoint.inner-values", "true"]
    given = read(tmp_path, *words)
    state, adjoint = solver(given.solver), solver(given.adjoint)
    kept = dict(levels=2, coarse_params=jm.all_layers, exact_first=1)
    assert state == jm.MGRIT(8, **kept, coarse_step=jm.picard(3))
    assert adjoint == jm.MGRIT(8, **kept, coarse_step=jm.picard(3, inner_values=True))


def test_relaxation_only_has_a_key(tmp_path):
    given = read(tmp_path, "--solver.coarse-params", "injection", "--solver.coarse-step", "zero_step")
    assert solver(given.solver).coarse_step is jm.zero_step


def test_a_moving_average_reaches_the_schedule(tmp_path):
    given = read(tmp_path, "--training.moving-average", "0.8", "--training.start", "cold")
    assert build.trainer(given).schedule == jm.PredictThenSweep(0.8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--solver.coarse-params injection", "solver.coarse_params = 'injection': expected all_layers"),
        ("--adjoint.coarse-params average", "adjoint.coarse_params = 'average': expected all_layers"),
        ("--solver.coarse-step midpoint", "solver.coarse_step = 'midpoint': expected picard"),
        (
            "--solver.coarse-params average --solver.coarse-step midpoint --solver.exact-first 1",
            "solver.exact_first = 1: expected 0 with solver.coarse_params = 'average'",
        ),
        ("--solver.sweeps -1", "solver.sweeps = -1"),
        ("--training.moving-average 0.8", "training.moving_average = 0.8: expected null with training.start = 'warm'"),
        ("--training.moving-average 1", "training.moving_average = 1"),
        (
            "--training.moving-average 0.8 --training.start cold --training.schedule cycles_then_gradient",
            "expected null with training.schedule = 'cycles_then_gradient'",
        ),
        ("--solver.coarse-step zero_step --solver.sweeps 3", "solver.sweeps"),
    ],
)
def test_keys_that_do_not_fit_are_refused_by_name(words, message, tmp_path):
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, *words.split())
    assert message in str(refused.value)


@pytest.mark.parametrize("words", ["--solver.sweeps 0", "--solver.sweeps 99", "--solver.exact-first 99"])
def test_extreme_numbers_of_sweeps_and_exact_intervals_are_taken(words, tmp_path):
    assert build.trainer(read(tmp_path, *words.split())).solver.coarse_params is jm.all_layers


@pytest.mark.parametrize(
    ("words", "rungs"),
    [
        ("", [3, 4, 5, 10, 20, None]),  # 2, 3, 4 sweeps; then 2 and 4 cycles
        ("--control.most-cycles 1", [3, 4, 5, None]),
        # 4 sweeps of 4 layers are sequential
        ("--solver.sweeps 1 --solver.coarsening-factor 4", [2, 3, 4, 8, 16, None]),
        ("--solver.sweeps 6", [7, 14, 28, None]),
        # 4 layers in a step
        ("--solver.coarsening-factor 2 --solver.levels 3 --solver.sweeps 1", [2, 3, 4, 8, 16, None]),
        ("--solver.sweeps 8", [9]),  # exact
    ],
)
def test_control_climbs_by_sweeps_and_then_by_cycles(words, rungs, tmp_path):
    given = read(tmp_path, *words.split(), "--control.active", "true")
    assert ladder(given) == rungs
    own = given.solver.sweeps
    trainers = [build.trainer(given, rung=rung) for rung in range(len(rungs))]
    most = max(4 if len(rungs) > 1 and given.solver.coarsening_factor == 8 else 3, own)
    for trainer, count in zip(trainers, rungs, strict=True):
        work = fused_sweeps(given, rungs.index(count))
        if count is None:
            assert isinstance(trainer.solver, jm.Sequential) and work == 0
        elif count <= most + 1:
            assert trainer.solver.coarse_step == trainer.adjoint.coarse_step == jm.picard(count - 1)
            assert isinstance(trainer.schedule, jm.PredictThenSweep) and work == 1
        else:
            assert trainer.solver.coarse_step == trainer.adjoint.coarse_step == jm.picard(most)
            assert trainer.solver.cycles == trainer.adjoint.cycles == count // (most + 1)
            # A state and an adjoint cycle are the work of one fused sweep, and the gradient is another.
            assert isinstance(trainer.schedule, jm.CyclesThenGradient) and work == 1 + count // (most + 1)
    names = [Controller(given).name(rung) for rung in range(len(rungs))]
    assert names[0] == f"picard({own})"
    if rungs[1:] and given.control.most_cycles > 1:
        assert names[-2:] == [f"4 cycles with picard({most})", "sequential sweeps"]
