"""`jaxmgrit.analysis.control` by its earlier name."""

from jaxmgrit.analysis.control import *  # noqa: F403
