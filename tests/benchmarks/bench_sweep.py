"""What a sweep of 200 tiny runs takes beside their compute.

    python -m tests.benchmarks.bench_sweep [RUNS]

Compute is what the runs themselves say: seconds of training and evaluation, and of compiling. All else is reading the file, planning,
starting runs, and writing their directories and the table. Times are of CPU, so that another process on the machine does not count.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from locallearn.cli import code_of

SWEEP = """
base:
  rule: {{name: backprop}}
  model: {{name: mlp, widths: [40, 64, 64, 10], shards: 2}}
  data: {{name: strokes1d, samples: 2000}}
  train: {{epochs: 10, batch: 50, evaluate_every: 90}}
vary:
  rule: [{{name: backprop}}, {{name: direct_feedback}}]
  train.optimizer.rate: [1.0e-3, 2.0e-3, 3.0e-3, 5.0e-3, 1.0e-2]
seeds: [{seeds}]
"""


def main(count: int = 200) -> None:
    """Print the ratio."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "tiny.yaml"
        path.write_text(SWEEP.format(seeds=", ".join(map(str, range(count // 10)))))
        begun, wall = time.process_time(), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            assert code_of(["sweep", str(path), "--runs", place]) == 0
        took, wall = time.process_time() - begun, time.perf_counter() - wall
        ends = [json.loads(end.read_text()) for end in Path(place).glob("tiny/*/*/result.json")]
    compute = sum(end["seconds"] + end["compile_seconds"] for end in ends)
    print(f"{len(ends)} runs: {wall:.1f} s, {took:.1f} s of CPU; compute {compute:.1f} s; {wall / compute:.2f} times the compute")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
