"""Make every defect in turn, and see whether the tests of its rule notice.

    python -m tests.mutation [RULE ...] [--jobs N]

Each defect is made in a copy of the package, where the tests of that rule run, and the conformance suite if they see nothing. Takes
about ten minutes on two idle cores; with RULEs only their defects are made. Exit code 1 if a defect was not noticed, or an equivalent
change was.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutation.defects import DEFECTS, EQUIVALENT, Defect

ROOT = Path(__file__).parents[2]
SHARED = {
    "_predictive": ["predictive_coding"],
    "_readout": ["forward_forward"],
    "_settling": ["equilibrium_propagation"],
    "_views": ["blockwise_barlow_twins"],
}
"""Whose tests a file is held to that several rules share."""


def broken(defect: Defect, folder: Path) -> None:
    """A copy of the package with the defect, and the tests."""
    for name in ("locallearn", "tests", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    path = folder / "locallearn" / "rules" / f"{defect.rule}.py"
    text = path.read_text()
    if text.count(defect.right) != 1:
        raise SystemExit(
            f"{path.name}: `{defect.right}` stands there {text.count(defect.right)} times, not once; mend tests/mutation/defects.py"
        )
    path.write_text(text.replace(defect.right, defect.wrong))


def noticed(defect: Defect) -> str | None:
    """The first test that failed, or None."""
    with tempfile.TemporaryDirectory() as folder:
        broken(defect, Path(folder))
        for rule in SHARED.get(defect.rule, [defect.rule]):
            for words in ([f"tests/rules/test_{rule}.py"], ["tests/rules/test_conformance.py", "-k", f"[{rule}]"]):
                command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider", *words]
                ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
                if ended.returncode not in (0, 1):
                    return f"broke the tests: {(ended.stdout + ended.stderr).strip().splitlines()[-1]}"
                if ended.returncode == 1:
                    return next((line.split(" - ")[0] for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "?")
    return None


def main() -> int:
    """Print a line for each defect."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("rules", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = [(d, True) for d in DEFECTS] + [(d, False) for d in EQUIVALENT]
    chosen = [(d, wanted) for d, wanted in chosen if not options.rules or d.rule in options.rules]
    bad = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for (defect, wanted), by in zip(chosen, pool.map(lambda one: noticed(one[0]), chosen), strict=True):
            well = (by is not None) == wanted
            bad += not well
            word = ("noticed" if wanted else "NOTICED") if by else ("NOT NOTICED" if wanted else "equivalent")
            print(f"{word:12} {defect.rule}: {defect.what}" + (f"\n{'':12} by {by}" if by else ""), flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} as they should be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
