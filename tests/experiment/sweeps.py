"""A small sweep for tests: begun in a process of its own, and what it left."""

import os
import re
import subprocess
import sys

from locallearn.experiment.record import TIMES
from locallearn.experiment.result import load
from locallearn.experiment.store import FINISHED, Store

SWEEP = """
base:
  rule: {name: backprop}
  model: {name: mlp, widths: [40, 8, 10], shards: 2}
  data: {name: strokes1d, samples: 200, test_samples: 50}
  train: {steps: 60, batch: 16, evaluate_every: 20}
vary: {codecs.default: [exact, int8]}
seeds: [0, 1]
"""


def started(place, runs, *options, within=()):
    """`locallearn sweep all.yaml` of a folder. within: the command that runs it, if it does not run by itself."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(place / "compiled"), "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "locallearn", "sweep", str(place / "all.yaml"), "--runs", str(runs), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*within, *command], env={**os.environ, **cache}, **pipes)


def done(shown):
    """How many runs it says that it did."""
    return len(re.findall(r"seed \d +0\.\d", shown.split("\n\n")[0]))


def endings(runs):
    """{run: (curve without times, result.json without times, arrays)} of every finished run."""
    found = {}
    for directory in sorted(path.parent for path in runs.glob("all/**/config.yaml")):
        assert Store(directory).state == FINISHED
        result = load(directory)
        curve = [{key: value for key, value in record.items() if key not in TIMES} for record in result.curve]
        arrays = {name: (array.dtype, array.tobytes()) for name, array in result.arrays.items()}
        lines = (directory / "result.json").read_text().splitlines()
        told = [line for line in lines if line.split('"')[1:2] not in (["seconds"], ["compile_seconds"], ["finished"])]
        assert len(told) == len(lines) - 3
        found[str(directory.relative_to(runs))] = (curve, told, arrays)
    return found
