"""Frameworks promote ranks and dtypes as JAX does by itself; what they make here is in double precision."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _as_frameworks_need(_strict):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
