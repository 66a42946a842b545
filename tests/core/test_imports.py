"""Imports point one way, and Ray is imported only by a run that uses it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import locallearn

ROOT = Path(locallearn.__file__).parent
CORE = {
    "locallearn." + name
    for name in (
        *("chain", "block", "rule", "codec", "traffic", "errors", "fields", "markers", "networks", "convolution"),
        *("replicas", "search", "words"),
    )
}
MAY = {
    "core": CORE,
    "models": {
        "locallearn.block",
        "locallearn.convolution",
        "locallearn.fields",
        "locallearn.markers",
        "locallearn.errors",
        "locallearn.models",
    },
    "data": {"locallearn.errors", "locallearn.fields", "locallearn.markers", "locallearn.data"},
    "rules": {"locallearn." + name for name in ("block", "chain", "rule", "convolution", "fields", "errors", "rules", "search")},
    "runtime": {*CORE, "locallearn.data", "locallearn.runtime"},
    "network": {*CORE, "locallearn.schedule", "locallearn.runtime", "locallearn.network"},
}
"""What each part may import of locallearn; `experiment` and the command line may import everything below them."""


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
    found = [ROOT / f"{name.split('.')[1]}.py" for name in CORE] if part == "core" else (ROOT / part).rglob("*.py")
    return sorted(path for path in found if path.exists())


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


def test_nothing_but_the_command_line_imports_the_command_line():
    assert not [path for path in ROOT.rglob("*.py") if path.stem not in ("cli", "__main__") and "locallearn.cli" in imported(path)]


@pytest.mark.parametrize("part", ["core", "models", "data", "rules", "experiment"])
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
