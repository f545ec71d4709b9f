"""What a program does, counted exactly: evaluations of Phi and of its vjp, and messages, per level and device.

The counts follow the program statement by statement, padding included, and the tests compare them with what is counted
while it runs. All devices do the same, so a figure is that of one device; a level that every device solves for itself
counts on each of them. That a pullback of large states evaluates Phi once more, rather than keep what it needs, counts
as part of the pullback.

Messages and bytes of one cycle, for states of S bytes, on P > 1 devices. Level l is *spread* if its intervals are
shared out (`Level.devices` > 1), with s_l intervals per device; the finest is, the coarsest never is:

- every relaxation sweep of a spread level sends one state (S bytes) to the neighbour, and so do, below the finest
  level, the F-points on the way up: 1 + nu_0 sends on the finest level, 2 + nu on level l >= 1 of a V-cycle, and
  (l + 1)(1 + nu) + l of an F-cycle, which relaxes there l + 1 times;
- where level l is spread and level l + 1 is not, each device's part is gathered, s_l S bytes of the right-hand side
  and, if level l + 1 is not the coarsest, as many of the C-points: once in a V-cycle and l + 1 times in an F-cycle;
- residual norm, norm of the values and votes on having converged are gathered in one message of three numbers.

What is gathered or summed at once counts as one message (small arrays travel as one, large ones one after another).

To these a program adds, once: coarse parameters and linearisation points gathered where a level stops being spread, the
value at the end given to all devices, and for the adjoint what moves the padding from one end to the other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace

from jaxmgrit.solvers.base import Solver
from jaxmgrit.solvers.mgrit.solver import MGRIT
from jaxmgrit.solvers.sequential import match_segments
from jaxmgrit.system.partition import Level
from jaxmgrit.training.schedules.base import Schedule
from jaxmgrit.training.schedules.predict_then_sweep import PredictThenSweep

Entries = Counter[tuple[int, str]]


@dataclass(frozen=True)
class Sizes:
    """Bytes of what is sent.

    Attributes:
        state: of one state.
        layer: of one layer's parameters.
        number: of one real number.
        step_size: of a layer's step size where there is one per layer.
    """

    state: int = 0
    layer: int = 0
    number: int = 0
    step_size: int = 0

    @property
    def slot(self) -> int:
        """Of one layer's parameters and step size."""
        return self.layer + self.step_size


@dataclass(frozen=True)
class Counts:
    """What one device does on one level.

    Attributes:
        phi: evaluations of the level's Phi in sweeps over all intervals.
        vjp: pullbacks to the state in such sweeps.
        grad: pullbacks to state and parameters in such sweeps.
        serial_phi: evaluations of Phi one after another.
        serial_vjp: pullbacks to the state one after another.
        serial_grad: pullbacks to state and parameters one after another.
        sends: blocks sent to another device.
        gathers: arrays gathered from all devices.
        sums: arrays summed over all devices.
        bytes: sent: a block's, this device's part of what is gathered, a summand's.
    """

    phi: int = 0
    vjp: int = 0
    grad: int = 0
    serial_phi: int = 0
    serial_vjp: int = 0
    serial_grad: int = 0
    sends: int = 0
    gathers: int = 0
    sums: int = 0
    bytes: int = 0

    @property
    def all_phi(self) -> int:
        """Evaluations of Phi, in sweeps or not."""
        return self.phi + self.serial_phi

    @property
    def all_vjp(self) -> int:
        """Pullbacks, in sweeps or not."""
        return self.vjp + self.grad + self.serial_vjp + self.serial_grad

    @property
    def messages(self) -> int:
        """Operations that communicate."""
        return self.sends + self.gathers + self.sums


@dataclass(frozen=True)
class Costs:
    """Seconds that things take on one device, measured.

    Attributes:
        phi: one Phi in a sweep over as many intervals as the program takes at a time, per interval.
        vjp: a pullback to the state, likewise.
        grad: a pullback to state and parameters, likewise.
        serial_phi: one Phi by itself.
        serial_vjp: a pullback to the state by itself.
        serial_grad: a pullback to state and parameters by itself.
        coarse_phi: one step of a coarse level by itself.
        coarse_vjp: its pullback to the state, linearised at a given state, likewise.
        message: an operation that communicates, beside its bytes.
        byte: of a message.
        coarse: evaluations of Phi in one step of a coarse level: 1 for `same_step`, 2 for `midpoint`.
    """

    phi: float
    vjp: float
    grad: float
    serial_phi: float
    serial_vjp: float
    serial_grad: float
    coarse_phi: float
    coarse_vjp: float
    message: float = 0.0
    byte: float = 0.0
    coarse: float = 1.0

    def seconds(self, counts: tuple[Counts, ...]) -> float:
        """Time of what is counted, everything done and sent one after the other."""
        found = 0.0
        for depth, level in enumerate(counts):
            swept = level.phi * self.phi + level.vjp * self.vjp + level.grad * self.grad
            if depth == 0:
                serial = level.serial_phi * self.serial_phi + level.serial_vjp * self.serial_vjp
                found += swept + serial + level.serial_grad * self.serial_grad
            else:
                found += swept * self.coarse + level.serial_phi * self.coarse_phi + level.serial_vjp * self.coarse_vjp
            found += level.messages * self.message + level.bytes * self.byte
        return found


def total(counts: tuple[Counts, ...]) -> Counts:
    """The sum over the levels."""
    return Counts(**{f.name: sum(getattr(c, f.name) for c in counts) for f in fields(Counts)})


def solve_counts(layers: int, solver: Solver, devices: int = 1, sizes: Sizes = Sizes()) -> tuple[Counts, ...]:
    """Counts of `solve`, finest level first; with a tolerance, of all `solver.cycles` cycles."""
    return _by_level(_solve(layers, solver, devices, sizes))


def adjoint_counts(
    layers: int,
    solver: Solver,
    adjoint: Solver,
    devices: int = 1,
    sizes: Sizes = Sizes(),
    *,
    gradients: bool = False,
) -> tuple[Counts, ...]:
    """Counts of `adjoint_solve` of a state solved by `solver`, and on request of the layers' gradients with it."""
    return _by_level(_adjoint(layers, solver, adjoint, devices, sizes, gradients))


def iteration_counts(
    schedule: Schedule, layers: int, solver: Solver, adjoint: Solver, devices: int = 1, sizes: Sizes = Sizes()
) -> tuple[tuple[Counts, ...], tuple[Counts, ...]]:
    """Counts of the two programs of an iteration: the state's, and that of adjoint and gradient; no optimiser's.

    With `CyclesThenGradient` also those of `jax.grad` through `propagate`.
    """
    if isinstance(schedule, PredictThenSweep):
        predict, sweep = _predict_then_sweep(layers, solver, adjoint, devices, sizes)
        return _by_level(predict), _by_level(sweep)
    solver, adjoint = match_segments(solver, adjoint)
    return (
        solve_counts(layers, solver, devices, sizes),
        adjoint_counts(layers, solver, adjoint, devices, sizes, gradients=True),
    )


def cycle_counts(
    layers: int, solver: MGRIT, devices: int = 1, sizes: Sizes = Sizes(), *, adjoint: bool = False
) -> tuple[Counts, ...]:
    """Counts of one cycle, residual norm included."""
    grids = _Grids(solver.hierarchy(layers, devices, front=adjoint), solver, sizes, adjoint)
    return _by_level(grids.cycle())


def _by_level(entries: Entries) -> tuple[Counts, ...]:
    depth = 1 + max((level for level, _ in entries), default=0)
    names = [f.name for f in fields(Counts)]
    return tuple(Counts(**{name: entries[level, name] for name in names}) for level in range(depth))


def _times(count: int, entries: Entries) -> Entries:
    return Counter({key: count * value for key, value in entries.items()})


def _sum(*parts: Entries) -> Entries:
    return sum(parts, Counter())


@dataclass(frozen=True)
class _Grids:
    """The functions of the method, by the same names, that count instead of computing."""

    levels: tuple[Level, ...]
    solver: Solver
    sizes: Sizes
    adjoint: bool = False

    def steps(self, depth: int, count: int, serial: str = "", pullback: str = "vjp") -> Entries:
        """Steps of a level; one of the adjoint linearises Phi and pulls back."""
        found: Entries = Counter({(depth, f"{serial}phi"): count})
        if self.adjoint:
            found[depth, serial + pullback] = count
        return found

    def starts(self, depth: int) -> Entries:
        return _sends(depth, self.levels[depth], 1, self.sizes.state)

    def f_relax(self, depth: int) -> Entries:
        level = self.levels[depth]
        return self.starts(depth) + self.steps(depth, level.share * level.factor)

    def points(self, depth: int) -> Entries:
        level = self.levels[depth]
        return self.starts(depth) + self.steps(depth, level.share * (level.factor - 1))

    def down(self, depth: int, nu: int) -> Entries:
        """FC-relaxations, and the sweep that makes the coarse right-hand side."""
        return _times(1 + nu, self.f_relax(depth)) + self.steps(depth + 1, self.levels[depth].share)

    def restrict(self, depth: int, size: int) -> Entries:
        """To level `depth` + 1 of one entry per interval."""
        fine, coarse = self.levels[depth], self.levels[depth + 1]
        return _gathers(depth, fine, fine.share, size) if coarse.devices == 1 else Counter()

    def gathered(self, size: int, first: int = 0) -> Entries:
        """An entry of every interval goes to the next level, from level `first` on down."""
        return _sum(*(self.restrict(depth, size) for depth in range(first, len(self.levels) - 1)))

    def grids(self) -> Entries:
        """Once a program: coarse parameters, and for the adjoint where the coarse levels are linearised."""
        return self.gathered(self.sizes.slot) + (self.gathered(self.sizes.state) if self.adjoint else Counter())

    def residual_norm(self) -> Entries:
        return _gathers(0, self.levels[0], 3, self.sizes.number)

    def all_sum(self, size: int) -> Entries:
        if self.levels[0].devices == 1:
            return Counter()
        return Counter({(0, "sums"): 1, (0, "bytes"): size})

    def cycle(self) -> Entries:
        assert isinstance(self.solver, MGRIT)
        return self.down(0, self.solver.cf_relaxations[0]) + self.residual_norm() + self.coarse_solve(1)

    def coarse_solve(self, depth: int, first: int = 0) -> Entries:
        values = 1 if depth == len(self.levels) - 1 else 2
        return self.restrict(depth - 1, values * self.sizes.state) + self.solve_level(depth, first)

    def solve_level(self, depth: int, first: int = 0) -> Entries:
        assert isinstance(self.solver, MGRIT)
        if depth == len(self.levels) - 1:
            return self.coarsest()
        passes = range(first, 2) if self.solver.cycle == "F" else [0]
        return _sum(*(self.v_cycle(depth, number) for number in passes), self.points(depth))

    def v_cycle(self, depth: int, first: int = 0) -> Entries:
        assert isinstance(self.solver, MGRIT)
        return self.down(depth, self.solver.cf_relaxations[1]) + self.coarse_solve(depth + 1, first)

    def coarsest(self) -> Entries:
        return self.steps(len(self.levels) - 1, self.levels[-1].factor, "serial_")

    def skip_first_down(self, depth: int = 1) -> Entries:
        assert isinstance(self.solver, MGRIT)
        if depth == len(self.levels) - 1:
            return self.coarsest()
        found = self.skip_first_down(depth + 1)
        if self.solver.cycle == "F":
            found += self.v_cycle(depth, 1)
        return found + self.points(depth)

    def run(self) -> Entries:
        solver = self.solver
        if len(self.levels) == 1 or not isinstance(solver, MGRIT):
            return self.sequential() + self.all_sum(self.sizes.state)
        skipped = self.skip_first_down() if solver.skip_first_down else Counter()
        cycles = _times(solver.cycles - int(solver.skip_first_down), self.cycle())
        return _sum(skipped, cycles, self.end_value(), self.residual_norm())

    def sequential(self, pullback: str = "vjp") -> Entries:
        """One interval after another; on P devices every one runs through its own P times."""
        level = self.levels[0]
        chain = self.steps(0, level.share * level.factor, "serial_", pullback)
        return _times(level.devices, chain + self.starts(0))

    def end_value(self) -> Entries:
        level = self.levels[0]
        found = self.all_sum(self.sizes.state)
        return found + self.starts(0) + self.steps(0, level.factor, "serial_") if level.trailing else found

    def coarse_problem(self) -> Entries:
        assert isinstance(self.solver, MGRIT)
        return _times(1 if len(self.levels) == 2 else self.solver.cycles, self.solve_level(1))

    def vjp_sweep(self) -> Entries:
        level = self.levels[0]
        return self.steps(0, level.share * level.factor, pullback="grad")

    def starts_if_spread(self) -> Entries:
        """Where level 1 is not spread, every device has solved all of it and knows what its intervals start from."""
        return self.starts(0) if self.levels[1].devices > 1 else Counter()


def _sends(depth: int, level: Level, entries: int, size: int) -> Entries:
    return Counter({(depth, "sends"): 1, (depth, "bytes"): entries * size}) if level.devices > 1 else Counter()


def _gathers(depth: int, level: Level, entries: int, size: int) -> Entries:
    return Counter({(depth, "gathers"): 1, (depth, "bytes"): entries * size}) if level.devices > 1 else Counter()


def _moved(level: Level, by: int, block: int, size: int) -> Entries:
    """A cyclic shift of sharded entries, `block` on each device."""
    hop, rest = divmod(by, block)
    kept = _sends(0, level, block - rest, size) if by and hop % level.devices else Counter()
    over = _sends(0, level, rest, size) if rest and (hop + 1) % level.devices else Counter()
    return kept + over


def _relayout(source: Level, target: Level, size: int) -> Entries:
    if (source.slots, source.devices) == (target.slots, target.devices):
        return _moved(source, target.first - source.first, source.share * source.factor, size)
    return _gathers(0, source, source.share * source.factor, size)


def _linearise(state: Level, target: Level, sizes: Sizes) -> Entries:
    grids = _Grids((state,), None, sizes)  # type: ignore[arg-type]
    if (state.slots, state.factor, state.devices) != (target.slots, target.factor, target.devices):
        after = grids.points(0) + _sends(0, state, 1, sizes.state)
        return after + _relayout(state, target, sizes.state)
    intervals, within = divmod(target.first - state.first, state.factor)
    if within == 0:
        return grids.starts(0) + _moved(state, intervals, state.share, sizes.state)
    inner = grids.steps(0, state.share * (state.factor - within))
    moved = [_moved(state, by, state.share, sizes.state) for by in (intervals, intervals + 1)]
    return _sum(grids.starts(0), inner, *moved)


def _solve(layers: int, solver: Solver, devices: int, sizes: Sizes) -> Entries:
    grids = _Grids(solver.hierarchy(layers, devices), solver, sizes)
    return grids.grids() + grids.run()


def _adjoint(layers: int, solver: Solver, adjoint: Solver, devices: int, sizes: Sizes, gradients: bool) -> Entries:
    state = solver.hierarchy(layers, devices)[0]
    levels = adjoint.hierarchy(layers, devices, front=True)
    grids = _Grids(levels, adjoint, sizes, adjoint=True)
    set_up = _sum(_linearise(state, levels[0], sizes), _relayout(state, levels[0], sizes.slot), grids.grids())
    if gradients and len(levels) == 1 and devices == 1:
        return set_up + grids.sequential("grad")
    if not gradients:
        return set_up + grids.run()
    collect = _relayout(levels[0], state, sizes.layer) + grids.all_sum(sizes.number)
    return _sum(set_up, grids.run(), grids.starts(0), grids.vjp_sweep(), collect)


def _predict_then_sweep(
    layers: int, solver: Solver, adjoint: Solver, devices: int, sizes: Sizes
) -> tuple[Entries, Entries]:
    assert isinstance(solver, MGRIT) and isinstance(adjoint, MGRIT)

    def grids_of(one: Solver, backward: bool) -> _Grids:
        levels = one.hierarchy(layers, devices, ragged=True)
        uneven = any(level.steps % level.factor for level in levels[:-1])  # then every layer is given its step size
        own = replace(sizes, step_size=sizes.number) if uneven else sizes
        return _Grids(levels, one, own, adjoint=backward)

    state, reverse = grids_of(solver, False), grids_of(adjoint, True)
    spread, lam_spread = (grids.levels[1].devices > 1 for grids in (state, reverse))
    values, lam_values = (sizes.state * (1 if len(grids.levels) == 2 else 2) for grids in (state, reverse))
    gathered = state.restrict(0, state.sizes.slot + values), reverse.restrict(0, reverse.sizes.slot + lam_values)
    if state.levels == reverse.levels and solver.coarse_params == adjoint.coarse_params:
        blocks = state.restrict(0, state.sizes.slot + values + lam_values) + state.gathered(state.sizes.slot, 1)
    else:
        blocks = _sum(*gathered, *(grids.gathered(grids.sizes.slot, 1) for grids in (state, reverse)))
    u_final = state.all_sum(sizes.state) if spread else Counter()
    predict = _sum(blocks, state.coarse_problem(), u_final)

    linearised = reverse.gathered(sizes.state, int(spread == lam_spread))
    coarse = _sum(state.starts_if_spread(), linearised, reverse.coarse_problem(), reverse.starts_if_spread())
    ends = reverse.all_sum(3 * sizes.number + sizes.state)
    return predict, _sum(coarse, reverse.vjp_sweep(), ends)
