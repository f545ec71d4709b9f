"""Names for what passes through the library.

JAX does not type pytrees, so a checker takes all of these for `Any`; they are for whoever reads a signature.
"""

from typing import Any, TypeAlias

# A state u^n or an adjoint lam^n, or several of them along leading axes: a pytree of floating-point arrays.
State: TypeAlias = Any

# Parameters of one layer, or of several along leading axes (layers; or intervals, slots): any pytree of arrays.
Layers: TypeAlias = Any

# Any pytree of arrays.
Arrays: TypeAlias = Any

# A schedule's warm values: a tuple of pytrees with one entry per interval along the leading axis, or of None.
Warm: TypeAlias = Any

# A number, a scalar array, or one per layer, shape (N,).
StepSize: TypeAlias = Any

# Booleans that tell layers from padding, or None where there is no padding.
Mask: TypeAlias = Any

# A device's position, a Python integer or a traced one.
Index: TypeAlias = Any
