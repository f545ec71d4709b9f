"""`jaxmgrit.analysis.cost_model` by its earlier name."""

from jaxmgrit.analysis.cost_model import *  # noqa: F403
