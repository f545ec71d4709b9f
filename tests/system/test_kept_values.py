"""What pullbacks keep of a layer: what is costly to compute again, and every operation that JAX has is judged."""

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from jaxmgrit.system.step import _CHEAP, keeping_little

# Products, reductions, functions of many operations, random numbers, messages, loops and calls.
COSTLY = frozenset(
    """
    acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt cos cosh digamma div erf erf_inv erfc exp exp2
    expm1 igamma igamma_grad_a igammac lgamma log log1p log2 logistic nextafter polygamma polynomial pow
    regularized_incomplete_beta rem
    rsqrt sin sinh sqrt tan tanh zeta bitcast_convert_type clz population_count reduce_precision shift_left
    shift_right_arithmetic shift_right_logical eq_to le_to lt_to iota empty2 name stop_gradient
    approx_top_k argmax argmin cholesky conv_general_dilated cumlogsumexp cummax cummin cumprod cumsum dot_general
    dynamic_update_slice eig eigh fft gather hessenberg householder_product lu qr ragged_dot_general reduce reduce_and
    reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_window reduce_window_max reduce_window_min
    reduce_window_sum reduce_xor scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub schur
    select_and_gather_add select_and_scatter select_and_scatter_add sort svd top_k triangular_solve tridiagonal
    tridiagonal_solve
    random_bits random_fold_in random_gamma random_seed random_split random_clone random_unwrap random_wrap
    rng_bit_generator rng_uniform threefry2x32
    after_all all_gather all_gather_invariant all_to_all axis_index create_token device_put pbroadcast pmax pmin
    ppermute psum psum_invariant pvary ragged_all_to_all reduce_scatter sharding_constraint
    call closed_call cond eval_jaxpr custom_jvp_call custom_lin custom_linear_solve custom_vjp_call get jit remat2 scan
    swap while
    """.split()
)

SINCE_0_11 = {"one_minus_square"}


def test_every_operation_of_jax_is_cheap_or_costly():
    known = {getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")}
    assert known - _CHEAP - COSTLY == set(), "judge these: put what is one pass over values at hand into _CHEAP"
    assert _CHEAP - SINCE_0_11 <= known
    assert not _CHEAP & COSTLY


def test_a_tanh_layer_keeps_its_arguments_and_the_tanh():
    w, u = jnp.ones((5, 5)) / 5, jnp.ones((7, 5))

    def kept(f):
        return sorted(leaf.shape for leaf in jax.tree.leaves(jax.vjp(f, w, u)[1]) if leaf.ndim == 2)

    def step(w, u):
        return u + 0.1 * jnp.tanh(u @ w)

    assert kept(keeping_little(step, u)) == [(5, 5), (7, 5), (7, 5)]
    large = jax.ShapeDtypeStruct((1 << 14,), u.dtype)
    assert kept(keeping_little(step, large)) == [(5, 5), (7, 5)]  # computed again
