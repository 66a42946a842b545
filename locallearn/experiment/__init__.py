"""Runs and sweeps: from a configuration to results in a directory, at any moment ready to be killed and resumed."""
