"""Fabrics are held to each other, all compiled in the same way."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def quickly(compile_quickly):
    """Without most of XLA's optimisations."""
