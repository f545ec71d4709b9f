"""Trainings on rough layers, method beside method."""
