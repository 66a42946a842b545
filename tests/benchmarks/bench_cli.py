"""How long the command line takes to answer: python -m tests.benchmarks.bench_cli [experiment.yaml]

Goals: `--help` in less than 0.3 s, `check` of an experiment in less than 1.2 s. The least of several runs counts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

RUNS = 5
ENTRY = "import sys; from locallearn.cli import main; sys.exit(main())"


def fastest(*arguments: str) -> float:
    """Seconds of the fastest of RUNS runs of the command."""

    def once() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", ENTRY, *arguments], check=True, capture_output=True)
        return time.perf_counter() - begun

    return min(once() for _ in range(RUNS))


def main() -> None:
    """Print a line for each command: seconds, goal."""
    found = sorted(Path("experiments").glob("*.yaml"))
    example = sys.argv[1] if len(sys.argv) > 1 else str(found[0]) if found else None
    goals = [(("--help",), 0.3), *([(("check", example), 1.2)] if example else [])]
    for command, goal in goals:
        took = fastest(*command)
        print(f"{' '.join(command):40} {took:6.2f} s   goal {goal}: {'met' if took < goal else 'MISSED'}")


if __name__ == "__main__":
    main()
