"""The suite asks XLA to compile quickly; a selection is repeated with the optimisations that users have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAWS = {  # each once, where there is a rest
    "after_k_cycles_the_first_k_times_1_plus_nu_c_points_are_exact_and_no_more": "K = 7 and a rest-1",
    "the_kth_residual_vanishes_if_and_only_if_nothing_is_left_to_correct": "K = 7 and a rest-1",
    "two_levels_are_exact_after_k_over_1_plus_nu_cycles_and_not_before": "K = 7 and a rest-1",
    "the_adjoint_too_is_exact_after_k_over_1_plus_nu_cycles_and_not_before": "K = 7 and a rest",
    "errors_of_a_scalar_problem_propagate_by_the_known_matrix": "-0.8-0.3-1",
    "one_level_is_sequential_propagation_in_no_cycles": "levels=1",
    "the_exact_solution_is_a_fixed_point_with_residual_zero": "38-F-cycle",
}
REFERENCE = [  # histories of one hierarchy: deep ones take long to compile
    "every_state_is_the_originals",
    "every_adjoint_is_the_originals",
    "the_objective_and_its_parts_are_the_originals",
    "the_sequential_gradient_of_the_objective_is_the_originals",
    "the_gradient_of_the_converged_multigrid_is_the_originals[V]",
    "the_residuals_of_the_state_are_the_originals[L3_cf4_2_FCF]",
    "the_residuals_of_the_adjoint_are_the_originals[L3_cf4_2_FCF]",
]
SELECTION = [
    *(f"tests/test_laws.py::test_{name}[{case}]" for name, case in LAWS.items()),
    *(f"tests/test_reference.py::test_{name}" for name in REFERENCE),
    "tests/backend/test_backends.py::test_twenty_iterations_of_training_are_those_of_one_device"
    "[predict, then sweep-203-SGD-4]",
]


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "0", reason="the suite itself runs with all optimisations"
)
def test_laws_the_reference_case_and_trainings_hold_with_all_optimisations():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SELECTION]
    # Without the suite's flags, which make XLA compile quickly.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
