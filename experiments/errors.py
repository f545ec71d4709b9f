"""The errors a user of the experiments may cause; their messages are all that is shown of them."""


class ConfigError(ValueError):
    """A config that cannot be run; the message names key, value, expectation and remedy."""


class TrainingStopped(RuntimeError):
    """A training that went wrong; the message says where, how and what to try."""
