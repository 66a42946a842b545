"""Joining a Ray that runs, or starting one of our own for as long as it is needed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from locallearn.errors import NoRay
from locallearn.runtime.knock import TOKEN, knock
from locallearn.words import first_line

_ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # workers at normal priority
    "RAY_max_direct_call_object_size": "8000000",  # frames up to 8 MB travel inside the call
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # accelerators stay visible to actors that reserve none
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine takes longer than the half minute that Ray waits
}

_private = False
"""Whether the Ray that this process has joined is its own."""


@contextlib.contextmanager
def joined(address: str | None, needed: Mapping[str, float]) -> Iterator[bool]:
    """Join or start Ray for as long as the block lasts; within such a block it is the same Ray. Gives whether it is private.

    address: of a running Ray; without it RAY_ADDRESS, and without that a private Ray on this machine. needed: what that one must have.
    """
    global _private
    began = _connect(address, needed)
    _private = began or _private
    try:
        yield _private
    finally:
        if began:
            _private = False
            with _no_fork_warning():
                ray.shutdown()


def _connect(address: str | None, needed: Mapping[str, float]) -> bool:
    """Join or start Ray, if that has not been done; whether one was started."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            knock(address)
            ray.init(address=address, **quiet)
        except Exception as error:
            if "AuthToken" in f"{error} {error.__cause__}":
                raise NoRay(f"the Ray at `{address}` asks for a token, or does not accept this one: {TOKEN}") from error
            raise NoRay(f"no Ray answers at `{address}`: {first_line(error)}") from error
        return False
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with _no_fork_warning():
        cpus = max(math.ceil(needed.get("CPU", 0)), os.cpu_count() or 1)
        own = {name: amount for name, amount in needed.items() if name not in ("CPU", "GPU")}
        try:
            ray.init(address="local", include_dashboard=False, num_cpus=cpus, resources=own, **quiet)
        except Exception as error:
            raise NoRay(f"Ray did not start on this machine, which may be too busy: {first_line(error)}") from error
    return True


@contextlib.contextmanager
def _no_fork_warning() -> Iterator[None]:
    """JAX warns of any fork, with reason; Ray's are followed by an exec at once, which is safe."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        yield
