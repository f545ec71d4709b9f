"""What the cost model counts is what programs do when they run: evaluations of Phi, pullbacks, messages, bytes."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm
from jaxmgrit import cost_model

SEEN = []  # appended to by every device at once


def note(what, value):
    """Count `what` when the program gets here; the value makes it count for every interval of a batch."""
    jax.debug.callback(lambda _: SEEN.append(what), value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def counted(stride, x):
    note(("phi", stride), x)
    return x


def forward(stride, x):
    return counted(stride, x), None


def backward(stride, _, g):
    note(("vjp", stride), g)
    return (g,)


counted.defvjp(forward, backward)


def step(theta, u, h, stride=1):
    """A counted layer with one array as its parameters."""
    return u + h * jnp.tanh(counted(stride, u @ theta))


def coarse_step(_, theta, u, h, m):
    """A coarse step, counted for its level, which the layers it replaces tell."""
    return step(theta, u, h, m)


def seen(run, devices):
    """What a call does on every device: evaluations {(kind, layers a step replaces): times}, and what it sends."""
    jax.effects_barrier()  # what ran before may still be counting
    SEEN.clear()
    jax.block_until_ready(run())
    jax.effects_barrier()
    evaluated, sent = collections.Counter(), collections.Counter()
    for what, times in collections.Counter(SEEN).items():
        assert times % devices == 0
        if what[0] in ("phi", "vjp"):
            evaluated[what] += times // devices
        else:
            kind, nbytes = what
            sent.update({kind: times // devices, "bytes": nbytes * times // devices})
    return +evaluated, +sent


class CountingMesh(jm.Mesh):
    """A mesh that counts what its devices send."""

    def _permute(self, block, hop):
        if hop % self.size:
            self._note("sends", block)
        return super()._permute(block, hop)

    def all_gather(self, x):
        self._note("gathers", x)
        return super().all_gather(x)

    def all_sum(self, x):
        self._note("sums", x)
        return super().all_sum(x)

    def data_gather(self, x):
        if self.data_size > 1:
            self._note("gathers", x)
        return super().data_gather(x)

    def data_sum(self, x):
        if self.data_size > 1:
            self._note("sums", x)
        return super().data_sum(x)

    def _note(self, kind, x):
        note((kind, sum(y.nbytes for y in jax.tree.leaves(x))), self.index())


def counting_mesh(devices, data=1):
    if data == 1:
        backend = nets.mesh(devices)
        return CountingMesh(backend.mesh) if devices > 1 else backend
    axes = (jax.sharding.AxisType.Auto,) * 2
    grid = jax.make_mesh((data, devices), ("data", "layers"), axis_types=axes, devices=jax.devices()[: data * devices])
    return CountingMesh(grid, data_axis="data")


M = functools.partial(jm.MGRIT, coarse_step=coarse_step, intervals_per_sweep=3)
# Layers, solver, adjoint.
HIERARCHIES = {
    "two levels": (32, M(4, levels=2, cycles=2), M(4, levels=2, cycles=1)),
    "V-cycles": (64, M(2, levels=4, cycles=2), M(2, levels=4, cycles=2)),
    "V-cycles, FCF, uneven N": (53, M((3, 2), cf_relaxations=(1, 2), cycles=2), M((3, 2), cycles=3)),
    "F-cycles": (64, M(2, levels=4, cycle="F", cycles=2), M(2, levels=4, cycle="F", cycles=1)),
    "F-cycles, uneven N": (59, M(2, levels=5, cycle="F", cf_relaxations=(1, 1)), M(3, levels=3, cycle="F")),
    "skipped, V": (48, M(2, levels=3, skip_first_down=True, cycles=3), M(2, levels=3, skip_first_down=True)),
    "skipped, F, uneven N": (37, M(2, levels=4, cycle="F", skip_first_down=True), M(4, skip_first_down=True)),
    "tolerance, F, factors": (64, M((4, 2), cycle="F", rtol=1e-12), M((4, 2), atol=1e-14)),
    "sequential": (30, jm.Sequential(4), jm.Sequential()),
    "sequential state": (21, jm.Sequential(), M(4, levels=2)),
}

AVERAGED = functools.partial(M, coarse_params=jm.average)
# Layers, solver, adjoint; of one-shot iterations that predict, then sweep.
ONE_SHOT = {
    "two levels": (64, AVERAGED(4, levels=2), AVERAGED(4, levels=2)),
    "uneven N": (57, AVERAGED(4, levels=2), AVERAGED(4, levels=2)),
    "three levels, F": (64, AVERAGED(2, levels=3, cycle="F", cycles=2), AVERAGED(2, levels=4, cycles=1)),
}
SIZES = cost_model.Sizes(state=2 * nets.WIDTH * 8, layer=nets.WIDTH**2 * 8, number=8)


def sizes(backend):
    return dataclasses.replace(SIZES, state=SIZES.state // backend.data_size)


def network(layers):
    return nets.rough(layers)["w"], nets.state(batch=2)


def grids(layers, solver, devices, **where):
    return solver.hierarchy(layers, devices, **where)


def state_solve(layers, solver, adjoint, backend):
    """A function that solves, with its counts: [(levels, counts), ...]."""
    theta, u0 = network(layers)
    counts = cost_model.solve_counts(layers, solver, backend.size, sizes(backend), data=backend.data_size)
    run = jax.jit(lambda: jm.solve(step, theta, u0, h=0.1, solver=solver, backend=backend))
    return run, [(grids(layers, solver, backend.size), counts)]


def adjoint_solve(layers, solver, adjoint, backend):
    theta, u0 = network(layers)
    sol = jm.solve(step, theta, u0, h=0.1, solver=solver, backend=backend)
    counts = cost_model.adjoint_counts(layers, solver, adjoint, backend.size, sizes(backend), data=backend.data_size)
    run = jax.jit(lambda: jm.adjoint_solve(step, theta, sol, u0, h=0.1, solver=adjoint, backend=backend))
    return run, [(grids(layers, adjoint, backend.size, front=True), counts)]


def iteration(schedule, layers, solver, adjoint, backend):
    """One iteration of training."""

    def opening(theta, x):
        return x @ theta

    def loss(theta, u, y):
        return jnp.mean((u @ theta - y) ** 2), None

    theta, u0 = network(layers)
    params = jm.Params(jnp.eye(nets.WIDTH), theta, jnp.ones((nets.WIDTH, 1)))
    batch = (u0, jnp.zeros((u0.shape[0], 1)))
    trainer = jm.OneShot(jm.Problem(opening, step, loss, h=0.1), optax.sgd(0.1), solver, adjoint, schedule, backend)
    state, update = trainer.init(params, batch), jax.jit(trainer.step)
    ragged = isinstance(schedule, jm.PredictThenSweep)
    levels = (
        grids(layers, solver, backend.size, ragged=ragged),
        grids(layers, adjoint, backend.size, ragged=ragged, front=not ragged),
    )
    counts = cost_model.iteration_counts(
        schedule, layers, solver, adjoint, backend.size, sizes(backend), data=backend.data_size
    )
    return lambda: update(state, batch), list(zip(levels, counts, strict=True))


PROGRAMS = {
    "solve": (state_solve, HIERARCHIES),
    "adjoint": (adjoint_solve, HIERARCHIES),
    "cycles, then gradient": (functools.partial(iteration, jm.CyclesThenGradient()), HIERARCHIES),
    "predict, then sweep": (functools.partial(iteration, jm.PredictThenSweep()), ONE_SHOT),
}
# An iteration is a state solve, and an adjoint solve with the gradients; the two by themselves are tried less often.
ALONE = [(program, name, 2) for program in ("solve", "adjoint") for name in ("V-cycles, FCF, uneven N", "sequential")]
ITERATIONS = ("cycles, then gradient", "predict, then sweep")
# Every hierarchy over four devices; some over one, others over two.
OVER_ONE = {"V-cycles, FCF, uneven N", "F-cycles", "tolerance, F, factors", "sequential", "uneven N"}
OVER_TWO = {"two levels", "F-cycles, uneven N", "skipped, F, uneven N", "sequential state", "three levels, F"}
EVERY = (
    [(*case, 1) for case in ALONE]
    + [
        (program, name, devices, 1)
        for devices, names in ((4, {*HIERARCHIES, *ONE_SHOT}), (1, OVER_ONE), (2, OVER_TWO))
        for program in ITERATIONS
        for name in PROGRAMS[program][1]
        if name in names
    ]
    + [("cycles, then gradient", "F-cycles, uneven N", devices, 1) for devices in (3, 8)]
    + [("predict, then sweep", "uneven N", 8, 1)]
    + [("cycles, then gradient", "tolerance, F, factors", 4, 2), ("predict, then sweep", "three levels, F", 2, 2)]
)
QUICK = [("solve", "V-cycles, FCF, uneven N", 2, 1)]


def modelled(parts):
    """What the model says every device does, evaluations keyed by the layers one step of a level replaces."""
    evaluated, sent = collections.Counter(), collections.Counter()
    for levels, counts in parts:
        for level, of_level in zip(levels, counts, strict=False):
            # Where devices run through their parts in turn, the model counts the time that a device waits for others.
            turns = level.devices if level is levels[-1] else 1
            serial_vjp = of_level.serial_vjp + of_level.serial_grad
            evaluated["phi", level.stride] += of_level.phi + of_level.serial_phi // turns
            evaluated["vjp", level.stride] += of_level.vjp + of_level.grad + serial_vjp // turns
        whole = cost_model.total(counts)
        sent.update(sends=whole.sends, gathers=whole.gathers, sums=whole.sums, bytes=whole.bytes)
    return +evaluated, +sent


@pytest.mark.parametrize(("program", "name", "devices", "data"), nets.slow_but(QUICK, EVERY))
def test_evaluations_and_messages_counted_at_run_time_are_those_of_the_model(program, name, devices, data):
    of, hierarchies = PROGRAMS[program]
    run, parts = of(*hierarchies[name], counting_mesh(devices, data))
    evaluated, sent = modelled(parts)
    seen_evaluated, seen_sent = seen(run, devices * data)
    assert seen_evaluated == evaluated
    assert seen_sent == sent


def collectives(jaxpr, times=1):
    """The operations of a traced program that communicate, with the trip counts of the loops they are in."""
    found = collections.Counter()
    for equation in jaxpr.eqns:
        name = {"ppermute": "sends", "all_gather": "gathers", "psum": "sums"}.get(equation.primitive.name)
        if name:
            found[name] += times
            found["bytes"] += times * sum(x.aval.size * x.aval.dtype.itemsize for x in equation.invars)
        inner = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            value = getattr(value, "jaxpr", value)
            found += collectives(value, inner) if hasattr(value, "eqns") else {}
    return found


@pytest.mark.parametrize("devices", nets.slow_but([2], [2, 4]))
@pytest.mark.parametrize("name", ["two levels", "V-cycles", "V-cycles, FCF, uneven N", "skipped, V"])
def test_the_messages_counted_are_the_collectives_of_the_traced_program(name, devices):
    backend = nets.mesh(devices)
    run, parts = state_solve(*HIERARCHIES[name], backend)
    assert collectives(run.trace().jaxpr.jaxpr) == modelled(parts)[1]


@pytest.mark.parametrize("devices", [1, 2])
def test_of_newton_every_tangent_of_every_iteration_is_counted(devices):
    layers, (theta, u0) = 32, network(32)
    shapes = cost_model.Shapes(theta[0], u0)
    here, tangents = layers // devices, 1 + nets.WIDTH  # one of them differs between samples

    def newton(iterations):
        return jm.Newton(4, iterations=iterations, rtol=None, sequential_fallback=False)

    (counts,) = cost_model.solve_counts(layers, newton(3), devices, shapes)
    # With a last sweep that measures nothing, but is whoever's who wants the intervals' ends.
    assert (counts.phi, counts.vjp, counts.all_phi) == (4 * here, 3 * tangents * here, 4 * here)
    one_more = cost_model.cycle_counts(layers, newton(3), devices, shapes)
    assert (one_more[0].phi, one_more[0].vjp) == (here, tangents * here)
    (bounded,) = cost_model.solve_counts(layers, jm.Newton(4, iterations=3), devices, shapes)
    assert bounded.vjp == counts.vjp and bounded.serial_phi == 0
    _, (adjoint,) = cost_model.iteration_counts(
        jm.CyclesThenGradient(), layers, jm.Sequential(4), newton(1), devices, shapes
    )
    assert (adjoint.vjp, adjoint.grad) == (nets.WIDTH * here, here)
    with pytest.raises(ValueError, match="Newton pushes a tangent.*Shapes"):
        cost_model.solve_counts(layers, newton(1), devices, SIZES)
    run = jax.jit(lambda: jm.solve(step_by_tanh, theta, u0, h=0.1, solver=newton(3), backend=nets.mesh(devices)))
    sent = {name: getattr(counts, name) for name in ("sends", "gathers", "sums", "bytes")}
    assert collectives(run.trace().jaxpr.jaxpr) == +collections.Counter(sent)


def step_by_tanh(theta, u, h):
    """A layer that is not counted."""
    return u + h * jnp.tanh(u @ theta)


@pytest.mark.parametrize("devices", nets.slow_but([2], [1, 2, 3, 8]))
@pytest.mark.parametrize(
    "name",
    [name for name in HIERARCHIES if not {"skipped", "sequential", "tolerance"} & set(name.replace(",", "").split())],
)
def test_a_cycle_sends_what_the_formula_in_the_documentation_says(name, devices):
    layers, solver, _ = HIERARCHIES[name]
    levels = solver.hierarchy(layers, devices)
    counts = cost_model.cycle_counts(layers, solver, devices, SIZES)
    one_more = dataclasses.replace(solver, cycles=solver.cycles + 1)
    more, fewer = (cost_model.total(cost_model.solve_counts(layers, s, devices, SIZES)) for s in (one_more, solver))
    assert {f: getattr(more, f) - getattr(fewer, f) for f in vars(more)} == vars(cost_model.total(counts))
    for depth, (level, of_level) in enumerate(zip(levels, counts, strict=False)):
        if level.devices == 1:
            assert of_level.messages == 0
            continue
        assert of_level.sends == sends_of_a_cycle(solver, depth)
        merged = levels[depth + 1].devices < level.devices
        visits = depth + 1 if solver.cycle == "F" else 1
        norms = int(depth == 0)
        assert of_level.gathers == merged * visits + norms
        assert of_level.sums == 0
        values = of_level.sends + merged * visits * level.share * (1 if depth + 2 == len(levels) else 2)
        assert of_level.bytes == values * SIZES.state + 3 * norms * SIZES.number


def sends_of_a_cycle(solver, depth):
    """The documented number of states that a device sends to its neighbour on a level that is spread."""
    nu = solver.cf_relaxations[min(depth, 1)]
    if depth == 0:
        return 1 + nu
    return 2 + nu if solver.cycle == "V" else (depth + 1) * (1 + nu) + depth


@pytest.mark.parametrize("inner_values", [False, True])
@pytest.mark.parametrize("layers", [64, 60])
def test_layers_dealt_out_to_one_device_are_the_iteration_as_it_is(layers, inner_values):
    solver = jm.MGRIT(8, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2, inner_values))
    for dealt, run in zip(
        cost_model.cyclic_counts(layers, solver, 1),
        cost_model.iteration_counts(jm.PredictThenSweep(), layers, solver, solver),
        strict=True,
    ):
        for mine, its in zip(dealt, run, strict=True):
            assert (mine.all_phi, mine.all_vjp, mine.messages) == (its.all_phi, its.all_vjp, its.messages)


def test_layers_dealt_out_make_a_pipeline_of_the_intervals():
    solver = jm.MGRIT(32, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2, inner_values=True))
    (_, predicted), (swept, back) = cost_model.cyclic_counts(1024, solver, 32, SIZES)
    # Wide steps as cheap as a layer, pullbacks twice as dear: eight to eleven times as fast as 1024 layers and back.
    wide = 2 * predicted.serial_phi + 2 * back.serial_phi
    assert 8 < 4 * 1024 / (wide + swept.serial_phi + 3 * swept.serial_grad) < 11
    assert (swept.sends, predicted.sums) == (2 * 63, 2 * 32)
    assert swept.bytes + predicted.bytes == (2 * 63 + 2 * 32) * SIZES.state
    three = dataclasses.replace(solver, coarsening_factor=8, levels=3)
    for devices, refused in ((33, solver), (1, jm.MGRIT(32, levels=2)), (1, three)):
        with pytest.raises(ValueError, match="cyclic_counts"):
            cost_model.cyclic_counts(1024, refused, devices)
