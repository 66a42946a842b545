"""The README is true: its Python runs, its YAML is valid, its commands run, its tests are what CI calls."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
LOCALLEARN = [sys.executable, "-m", "locallearn"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.S | re.M)


def commands():
    """Every `locallearn` command of the README, as words."""
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(part) for line in lines for part in line.split("&&") if part.strip().startswith("locallearn")]


def run(words, folder):
    """Its output, with programs compiled as users have them."""
    own = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")}
    done = subprocess.run(words, cwd=folder, env=own, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(words, folder):
    return run([*LOCALLEARN, *words[1:]], folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the README's files and the experiments."""
    place = tmp_path_factory.mktemp("readme")
    (place / "experiments").symlink_to(ROOT / "experiments")
    for block in blocks("yaml"):
        (place / re.match(r"# (\S+)", block)[1]).write_text(block)
    return place


def test_there_is_something_to_test():
    assert len(blocks("python")) >= 1
    assert len(commands()) >= 8


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(blocks("python")[number])
    printed = run([sys.executable, "-W", "error", script], tmp_path)
    assert 0.6 < float(printed.split()[0]) < 0.9


@pytest.mark.parametrize("words", [c for c in commands() if "sweep" not in c and "report" not in c], ids=" ".join)
def test_commands_run_as_written(words, folder):
    extra = ["--set", "train.epochs=1"] if words[1] == "run" else []
    assert call([*words, *extra], folder)


def test_the_quickstart_runs_and_draws(folder):
    sweep, report = (next(c for c in commands() if c[1] == name) for name in ("sweep", "report"))
    table = call([*sweep, "--only", "rule.name=mono_forward"], folder)
    assert "1-D strokes" in table
    assert "Fashion 14x14" in table
    call(report, folder)
    assert (folder / report[2] / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (folder / report[2] / "figures" / "frontier.pdf").read_bytes().startswith(b"%PDF")


def test_ci_calls_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    tests = next(block for block in blocks("bash") if "pytest" in block)
    for part in re.split(r"&&|\n", tests):
        assert part.strip() in script.replace("--quiet ", "")


def test_paths_and_links_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)|\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / (path[0] or path[1])).exists()
    for path in re.findall(r"`((?:locallearn|experiments|tests)/[\w/.-]+)`", TEXT):
        assert (ROOT / path).exists()


def test_nothing_names_a_place_on_the_authors_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".sh"} and path != Path(__file__):
            assert not re.search(r"/work/|/root/|\.\./shared", path.read_text()), name
