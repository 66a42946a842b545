"""Experiments: configuration, sweeps, runs and their results."""
