"""None of several processes goes on alone: what stops one stops all, with a message."""

import contextlib
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import jax

from experiments.errors import AgreedError, ConfigError, Interrupted, TrainingStopped
from experiments.processes.job import Job
from experiments.processes.watch import Watch

# What errors of XLA speak of where a connection broke.
_LOST = ("Gloo", "gloo", "NCCL", "onnection", "heartbeat", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED")


@contextlib.contextmanager
def all_or_none(job: Job, remedy: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Whatever stops one process of several stops all of them, with a message, rather than leave them waiting.

    Args:
        job: The processes.
        remedy: What to tell the user besides what happened.

    Yields:
        What to call when `remedy` has something else to say.
    """
    if job.count == 1:
        yield lambda: None
        return
    own = secrets.token_hex(8)
    # A launcher of ranks ends the others, and only the first that was lost shall be named.
    token = job.gather(own)[0] if job.noun == "rank" else own
    with Watch(token, job.name, job.patience) as watch:
        watch.remedy(remedy())
        try:
            yield lambda: watch.remedy(remedy())
        except (AgreedError, Interrupted):  # known to all processes, which end by themselves
            raise
        except BaseException as error:
            if not job.is_first:
                time.sleep(1.0)  # where all stop for the same reason, the first speaks for them
            _explain(job, error, remedy())
            # It has been explained, and is no loss that the companion should report.
            watch.close()
            # The exit codes of a single process.
            job.abort({KeyboardInterrupt: 130, ConfigError: 2}.get(type(error), 1))


def _explain(job: Job, error: BaseException, remedy: str) -> None:
    """Print what stopped a process."""
    text = f"{type(error).__name__}: {str(error).splitlines()[0]}." if str(error) else f"{type(error).__name__}."
    if isinstance(error, ConfigError):
        print(f"{job.name}: config error:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        remedy = ""
    elif isinstance(error, TrainingStopped):
        print(f"{job.name} stopped: {error}", file=sys.stderr)
        remedy = ""
    elif isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and any(word in str(error) for word in _LOST):
        print(f"{job.name} stopped: it lost contact with another one, which was killed or stopped.", file=sys.stderr)
        print(f"({text})", file=sys.stderr)
    else:
        if not isinstance(error, (KeyboardInterrupt, SystemExit)):
            traceback.print_exc()
        print(f"{job.name} stopped: {text}", file=sys.stderr)
    print(remedy, file=sys.stderr, flush=True)
