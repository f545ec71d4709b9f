"""Experiments with jaxmgrit: trainings run from the command line, each described by one file in configs/."""
