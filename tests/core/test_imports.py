"""Imports point one way, and Ray is imported only by a run that uses it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import locallearn

ROOT = Path(locallearn.__file__).parent


def named(*names):
    return {"locallearn." + name for name in names}


CORE = named(
    *("chain", "block", "rule", "codec", "traffic", "errors", "fields", "markers", "networks", "convolution"),
    *("cluster", "replicas", "search", "words"),
)
BELOW = CORE | named("train", "schedule", "data", "models", "rules", "runtime", "network", "config", "experiment")
MAY = {
    "core": CORE,
    "codec": named("codec", "errors", "fields"),
    "train": named("fields", "markers"),
    "schedule": named("fields", "networks"),
    "models": named("block", "convolution", "fields", "markers", "errors", "models"),
    "data": named("errors", "fields", "markers", "data"),
    "rules": named("block", "chain", "rule", "convolution", "fields", "markers", "errors", "rules", "search"),
    "runtime": CORE | named("data", "runtime"),
    "network": CORE | named("schedule", "runtime", "network"),
    "config": BELOW - named("experiment"),
    "experiment": BELOW,
    "submission": BELOW | named("submission"),
    "report": BELOW | named("report"),
    "commands": BELOW | named("report", "commands"),
}
"""What each part may import of locallearn, that is each module or folder; the command line may import everything."""


def imported(path):
    """Names of modules imported in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "locallearn")


def files(part):
    names = [name.split(".")[1] for name in CORE] if part == "core" else [part]
    modules = [path for name in names if (path := ROOT / f"{name}.py").exists()]
    return sorted([*modules, *(path for name in names for path in (ROOT / name).rglob("*.py"))])


def own(part):
    return [(path, name) for path in files(part) for name in imported(path) if name.startswith("locallearn.")]


@pytest.mark.parametrize("part", MAY)
def test_imports_point_down(part):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, name in own(part)
        if not any(name == allowed or name.startswith(allowed + ".") for allowed in MAY[part])
    ]
    assert files(part)
    assert not wrong


def test_every_part_has_its_place():
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "__main__", "cli"} == {name.split(".")[1] for name in CORE} | MAY.keys() - {"core"}


def test_nothing_but_the_command_line_imports_the_command_line():
    assert not [path for path in ROOT.rglob("*.py") if path.stem not in ("cli", "__main__") and "locallearn.cli" in imported(path)]


@pytest.mark.parametrize("part", [part for part in MAY if part not in ("runtime", "submission")])
def test_ray_is_the_runtimes_business(part):
    assert not [str(path) for path in files(part) for name in imported(path) if name.split(".")[0] == "ray"]


def test_importing_everything_but_the_cluster_starts_no_ray():
    modules = ["rules", "models", "data", "codec", "runtime.fused", "runtime.framed", "runtime.training"]
    code = "\n".join(["import sys", *(f"import locallearn.{m}\nassert 'ray' not in sys.modules, '{m}'" for m in modules)])
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_import_test_sees_imports_of_every_form(tmp_path):
    source = tmp_path / "some.py"
    source.write_text("import ray\nfrom locallearn import codec\ndef f():\n    from locallearn.runtime.local import Plan\n")
    assert set(imported(source)) == {"ray", "locallearn", "locallearn.codec", "locallearn.runtime.local"}
