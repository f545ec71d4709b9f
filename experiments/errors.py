"""The errors a user of the experiments may cause; their messages are all that is shown of them."""


class ConfigError(ValueError):
    """A config that cannot be run; the message names key, value, expectation and remedy."""


class AgreedError(ConfigError):
    """An error that every process of a run knows of.

    Attributes:
        silent: Whether another process says it.
    """

    def __init__(self, message: str, silent: bool) -> None:
        super().__init__(message)
        self.silent = silent


class TrainingStopped(RuntimeError):
    """A training that went wrong; the message says where, how and what to try."""


class Terminated(BaseException):
    """SIGTERM where nothing is trained: the program ends after its `finally` blocks."""


class Interrupted(RuntimeError):
    """A training that a signal has ended, between two iterations or after the last.

    Attributes:
        signal: The signal's number.
        iteration: Of the checkpoint that was made.
        finished: Whether the training had come to its end, and only pictures were still to be drawn.
    """

    def __init__(self, signal: int, iteration: int, finished: bool = False) -> None:
        super().__init__(signal, iteration)
        self.signal = signal
        self.iteration = iteration
        self.finished = finished
