"""Products summed over several leading axes are made one sum, and nothing else is changed."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmgrit.system.products import flat_products


def test_the_pullback_of_shared_weights_is_the_same_by_products_of_matrices():
    random = np.random.default_rng(0)
    weights, lengths = jnp.asarray(random.normal(size=(3, 5))), jnp.asarray([2, 3])
    states, above = jnp.asarray(random.normal(size=(4, 2, 3))), jnp.asarray(random.normal(size=(4, 2, 5)))

    @jax.jit
    def layer(weights, u):
        inner = jax.checkpoint(lambda u: jnp.sin(u @ weights) * weights[:1], prevent_cse=False)
        looped = jax.lax.fori_loop(0, 2, lambda i, x: jnp.cos(x) * lengths[i].astype(x.dtype), u @ weights)
        return jax.nn.relu(inner(u)) + looped

    _, pullback = jax.vjp(jax.vmap(layer, (None, 0)), weights, states)
    assert _axes_summed(pullback, above) == {1, 2}
    assert _axes_summed(flat_products(pullback), above) == {1}
    for expected, flat in zip(pullback(above), flat_products(pullback)(above), strict=True):
        np.testing.assert_allclose(flat, expected, rtol=1e-14, atol=1e-14)


def _axes_summed(f, *args):
    """Over how many axes the matrix products of a function sum."""

    def inside(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield len(equation.params["dimension_numbers"][0][0])
            for value in equation.params.values():
                value = getattr(value, "jaxpr", value)
                if hasattr(value, "eqns"):
                    yield from inside(value)

    return set(inside(jax.make_jaxpr(f)(*args).jaxpr))
