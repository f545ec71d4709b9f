"""Eight host devices (or what XLA_FLAGS say), double precision, no implicit promotion: what the tests run under."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

# Programs here are small and run once: XLA is told to compile quickly, which takes a third of the time and changes
# rounding only. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
count = "--xla_force_host_platform_device_count"
flags = [] if count in os.environ.get("XLA_FLAGS", "") else [f"{count}=8"]
if version("jax").startswith("0.10.") and os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    # Programs here are loops in loops: looking into them again and again takes a third of XLA's time.
    loops = ["while-loop-invariant-code-motion", "simplify-while-loops"]
    loops += ["while-loop-trip-count-annotator", "while-loop-constant-sinking"]
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    flags.append(f"--xla_disable_hlo_passes={','.join(loops)}")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# The workers and every process that tests start share what they compile, for this session: most of it many need.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="jaxmgrit-programs-")
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Files that tests compare with, where the project is checked out beside them.
_DATA = Path(__file__).parents[2] / "shared" / "data"
if _DATA.is_dir():
    os.environ.setdefault("JAXMGRIT_DATA", str(_DATA))

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module", autouse=True)
def _strict(request):
    """The method promotes neither ranks nor dtypes; the experiments train by optax's Adam, which does."""
    if "experiments" in request.path.parts:
        yield
        return
    jax.config.update("jax_enable_x64", True)  # an experiment in float32 has switched it off
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
