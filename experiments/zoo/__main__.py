"""What swapping `lax.scan` for `jm.propagate` costs, on many kinds of networks: `python -m experiments.zoo [KEY ...]`.

For every network, value and gradient by `jm.propagate` as it comes, beside the user's own plain scan and the best of
plain, checkpointed, unrolled and segmented ones, in turns, float32, on one core: time, temporary memory, compile time.
With `--cycles K` in place of that: the gradient by K + K cycles of `MGRIT`, how far it is off, and what the codes say.
With `--advise S`: what `jm.advise` recommends within S seconds, against all its candidates measured, and its times
against measured ones on one device and (`--devices 2`) on two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from experiments.config.arguments import above, at_least, output_file
from experiments.foundation.files import write_output
from experiments.runs import terminal
from experiments.timing import turns
from experiments.timing.devices import last_cores

PyTree = Any


def main(words: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parse(words)
    cores = last_cores(2)  # a worker of two devices has them, and this process the last
    where = turns.pin()  # before JAX starts its threads
    import jax

    import jaxmgrit as jm
    from experiments.networks.zoo import MAKERS

    if unknown := [key for key in options.keys if key not in MAKERS]:
        print(f"unknown: {', '.join(unknown)}; choose from {', '.join(MAKERS)}", file=sys.stderr)
        return 2
    keys = options.keys or list(MAKERS)
    print(f"jaxmgrit {jm.__version__}, jax {jax.__version__}, {jax.default_backend()}, float32, {where}")
    rows: list[dict[str, Any]]
    if options.advise:
        from experiments.zoo.advice import judged

        rows = [row._asdict() for row in judged(keys, options.advise, options.devices, cores)]
    else:
        rows = _inexact(keys, options.cycles) if options.cycles else _swapped(keys, options.seconds)
    if options.output:
        write_output(options.output, json.dumps({"jax": jax.__version__, "where": where, "rows": rows}, indent=1))
    return 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m experiments.zoo", description=__doc__)
    parser.add_argument("keys", nargs="*", metavar="KEY", help="networks of the zoo; all by default")
    parser.add_argument("--cycles", type=at_least(0), default=0, metavar="K", help="gradients by K + K cycles instead")
    advise = "what jm.advise says in S seconds instead"
    parser.add_argument("--advise", type=above(0), default=0, metavar="S", help=advise)
    parser.add_argument("--devices", type=int, choices=(1, 2), default=1, help="on which advice is compared as well")
    parser.add_argument("--seconds", type=above(0), default=4.0, help="about how long a network's calls take together")
    parser.add_argument("--output", type=output_file, metavar="FILE", help="write the rows as JSON")
    return parser.parse_args(words)


def _swapped(keys: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    import jaxmgrit as jm
    from experiments.networks.zoo import make
    from experiments.timing.sequential import propagations
    from experiments.zoo.gradients import gradient_of

    print(f"{'network':30} {'N':>5} {'plain ms':>9} {'best':>13} {'swap/plain':>10} {'swap/best':>9} "
          f"{'memory':>7} {'compile':>7}")  # fmt: skip
    rows: list[dict[str, Any]] = []
    for key in keys:
        net = make(key)

        def swapped(theta: PyTree, u0: PyTree, net: Any = net) -> PyTree:
            return jm.propagate(net.step, theta, u0, h=net.h)

        ways = {**propagations(net.step, net.h, net.layers), "swap": swapped}
        timed = turns.in_turns({k: gradient_of(f) for k, f in ways.items()}, (net.theta, net.u0), seconds)
        swap, plain = timed.pop("swap"), timed["plain"]
        best = min(timed, key=lambda name: timed[name].seconds)
        row = {
            "network": net.name,
            "layers": net.layers,
            "plain_ms": 1e3 * plain.seconds,
            "best": best,
            "best_ms": 1e3 * timed[best].seconds,
            "time_over_plain": swap.seconds / plain.seconds,
            "time_over_best": swap.seconds / timed[best].seconds,
            "memory_over_plain": (swap.bytes or 0) / max(plain.bytes or 0, 1),
            "compile_over_plain": swap.compile_seconds / plain.compile_seconds,
        }
        rows.append(row)
        print(f"{net.name:30} {net.layers:5} {row['plain_ms']:9.3g} {best:>13} {row['time_over_plain']:10.2f} "
              f"{row['time_over_best']:9.2f} {row['memory_over_plain']:7.2f} {row['compile_over_plain']:7.2f}",
              flush=True)  # fmt: skip
    for name in ("time_over_plain", "time_over_best", "memory_over_plain", "compile_over_plain"):
        column = [float(row[name]) for row in rows]
        print(f"{name}: worst {max(column):.2f}, median {statistics.median(column):.2f}")
    return rows


def _inexact(keys: Sequence[str], cycles: int) -> list[dict[str, Any]]:
    import jax

    from experiments.networks.zoo import make
    from experiments.zoo.gradients import by_cycles, distance, gradient_of, plain

    print(f"{'network':30} {'N':>5} {'gradient off by':>15} {'state':>15} {'adjoint':>15}")
    rows = []
    for key in keys:
        net = make(key)
        exact = jax.jit(gradient_of(plain(net)))(net.theta, net.u0)[1]
        gradient, state, adjoint = by_cycles(net, cycles)
        row = {"network": net.name, "off": distance(gradient, exact), "state": state.name, "adjoint": adjoint.name}
        rows.append(row)
        print(f"{net.name:30} {net.layers:5} {row['off']:15.2g} {row['state']:>15} {row['adjoint']:>15}", flush=True)
    # Not by >, to which nan would be right.
    wrong = [row for row in rows if not row["off"] <= 0.1]
    silent = [row["network"] for row in wrong if {row["state"], row["adjoint"]} <= {"CONVERGED", "CYCLES_USED_UP"}]
    print(f"off by more than 10 %: {len(wrong)} of {len(rows)}; without a code that says so: {silent or 'none'}")
    return rows


if __name__ == "__main__":
    terminal.run(main)
