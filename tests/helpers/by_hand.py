"""MGRIT as section 2 of the method describes it, word by word, one point at a time, in NumPy."""

from __future__ import annotations

from functools import partial

import numpy as np


class ByHand:
    """A hierarchy of systems u^j = phi[l](j - 1, u^{j-1}) + g^j, j = 1 .. counts[l], with C-points every factors[l]."""

    def __init__(self, phi, steps, factors, nu, kind, norm, weight=1.0):
        self.phi, self.factors, self.nu, self.kind, self.norm = phi, factors, nu, kind, norm
        self.weight = weight
        self.counts = [steps]
        for m in factors:
            self.counts.append(self.counts[-1] // m)
        self.norms = []

    def c_points(self, level):
        return range(self.factors[level], self.counts[level] + 1, self.factors[level])

    def f_relax(self, level, u, g):
        for j in range(1, self.counts[level] + 1):
            if j % self.factors[level]:
                u[j] = self.phi[level](j - 1, u[j - 1]) + g[j]

    def c_relax(self, level, u, g):
        for c in self.c_points(level):
            relaxed = self.phi[level](c - 1, u[c - 1]) + g[c]
            u[c] = self.weight * relaxed + (1 - self.weight) * u[c]

    def solve_coarsest(self, u, g):
        for j in range(1, self.counts[-1] + 1):
            u[j] = self.phi[-1](j - 1, u[j - 1]) + g[j]

    def cycle(self, level, u, g, full):
        m, below = self.factors[level], level + 1
        for _ in range(self.nu[min(level, 1)]):
            self.f_relax(level, u, g)
            self.c_relax(level, u, g)
        self.f_relax(level, u, g)
        r = np.zeros_like(u)
        for c in self.c_points(level):
            r[c] = self.phi[level](c - 1, u[c - 1]) + g[c] - u[c]
        if level == 0:
            self.norms.append(np.sqrt(sum(self.norm(r[c]) ** 2 for c in self.c_points(0))))
        v = u[: m * self.counts[below] + 1 : m].copy()
        rhs = np.zeros_like(v)
        for j in range(1, self.counts[below] + 1):
            rhs[j] = r[j * m] + v[j] - self.phi[below](j - 1, v[j - 1])
        w = v.copy()
        if below == len(self.factors):
            self.solve_coarsest(w, rhs)
        else:
            self.cycle(below, w, rhs, full)
            self.f_relax(below, w, rhs)
        u[: m * self.counts[below] + 1 : m] += w - v
        if full and level >= 1:
            self.cycle(level, u, g, False)

    def first_cycle_from_the_coarsest(self, u, g):
        values = [u]
        for m, count in zip(self.factors, self.counts[1:], strict=True):
            values.append(values[-1][: m * count + 1 : m].copy())
        zeros = [np.zeros_like(x) for x in values]
        self.solve_coarsest(values[-1], zeros[-1])
        for level in reversed(range(len(self.factors))):
            m = self.factors[level]
            if level + 1 < len(self.factors):
                self.f_relax(level + 1, values[level + 1], zeros[level + 1])
            values[level][: m * self.counts[level + 1] + 1 : m] = values[level + 1]
            if self.kind == "F" and level >= 1:
                self.cycle(level, values[level], zeros[level], False)
        self.norms.append(-1.0)

    def run(self, u, g, cycles, skip):
        for k in range(cycles):
            if k == 0 and skip:
                self.first_cycle_from_the_coarsest(u, g)
            else:
                self.cycle(0, u, g, self.kind == "F")
        self.f_relax(0, u, g)
        return u, np.array(self.norms)


def frobenius(x):
    return np.sqrt(np.sum(x * x))


class Layer:
    """The residual layer u + h tanh(u W + b), as one coarse layer in place of m, and its transpose."""

    def __init__(self, w, b, h, m, midpoint):
        self.w, self.b, self.h = w, b, h
        self.ahead = 0.5 * h * (1 - 1 / m) if midpoint else 0.0

    def f(self, u):
        return np.tanh(u @ self.w + self.b)

    def f_transposed(self, u, lam):
        return (lam * (1 - self.f(u) ** 2)) @ self.w.T

    def advance(self, u):
        return u + self.h * self.f(u + self.ahead * self.f(u))

    def transpose(self, u, lam):
        inner = self.h * self.f_transposed(u + self.ahead * self.f(u), lam)
        return lam + inner + self.ahead * self.f_transposed(u, inner)


def run(
    theta,
    u0,
    h,
    factors,
    *,
    nu,
    kind,
    cycles,
    skip,
    combine,
    midpoint,
    cost_derivative=None,
    norm=frobenius,
    weight=1.0,
):
    """State and adjoint of a tanh network from a cold start: (states, their residuals, adjoints, their residuals).

    The cold start is u^0 and lam^N everywhere; lam^N = u^N / 2. `combine` makes one layer's array from those of several
    (leading axis); `cost_derivative` is (u, h) -> d running_cost / du.
    """
    w, b, u0 = np.asarray(theta["w"]), np.asarray(theta["b"]), np.asarray(u0)
    layers = len(w)
    sizes = np.broadcast_to(np.asarray(h), (layers,))
    strides = [int(np.prod(factors[:level])) for level in range(len(factors) + 1)]

    def layer(level, n):
        part = slice(n, n + strides[level])
        return Layer(combine(w[part]), combine(b[part]), sizes[part].sum(), strides[level], midpoint and level > 0)

    def advance(level, j, value):
        return layer(level, j * strides[level]).advance(value)

    phi = [partial(advance, level) for level in range(len(strides))]
    u = np.repeat(u0[None], layers + 1, axis=0)
    u, norms = ByHand(phi, layers, factors, nu, kind, norm, weight).run(u, np.zeros_like(u), cycles, skip)

    def retreat(level, j, value):
        n = layers - (j + 1) * strides[level]
        return layer(level, n).transpose(u[n], value)

    phi = [partial(retreat, level) for level in range(len(strides))]
    lam = np.repeat(0.5 * u[-1:], layers + 1, axis=0)
    source = np.zeros_like(lam)
    if cost_derivative is not None:
        for j in range(1, layers + 1):
            source[j] = cost_derivative(u[layers - j], sizes[layers - j])
    lam, lam_norms = ByHand(phi, layers, factors, nu, kind, norm, weight).run(lam, source, cycles, skip)
    return u, norms, lam[::-1], lam_norms
