"""The records of the cost model: what a device does on a level, how large things are, and what things cost."""

from __future__ import annotations

from dataclasses import dataclass, fields


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


NOTHING = Sizes()


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
        gathers: arrays gathered from all devices or from a group of them.
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
        seconds = 0.0
        for depth, level in enumerate(counts):
            swept = level.phi * self.phi + level.vjp * self.vjp + level.grad * self.grad
            # Coarse steps in sweeps may cost several Phi (`coarse`); those one after another were measured as they are.
            if depth == 0:
                serial = level.serial_phi * self.serial_phi + level.serial_vjp * self.serial_vjp
                seconds += swept + serial + level.serial_grad * self.serial_grad
            else:
                seconds += swept * self.coarse + level.serial_phi * self.coarse_phi + level.serial_vjp * self.coarse_vjp
            seconds += level.messages * self.message + level.bytes * self.byte
        return seconds


def total(counts: tuple[Counts, ...]) -> Counts:
    """The sum over the levels."""
    return Counts(**{f.name: sum(getattr(c, f.name) for c in counts) for f in fields(Counts)})
