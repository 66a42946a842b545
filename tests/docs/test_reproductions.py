"""The table of reproductions is what its script makes of the lists beside it; every experiment is read without a mistake."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from locallearn.config.run import resolve
from locallearn.config.sweep import load

FOLDER = Path(__file__).parents[2] / "experiments" / "reproductions"
EXPERIMENTS = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "published.yaml")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("table", FOLDER / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script):
    assert (FOLDER / "README.md").read_text() == script.table()


def test_every_experiment_has_a_figure(script):
    listed = {figure["sweep"] for figure in script.figures()}
    assert {path.stem for path in EXPERIMENTS} <= listed
    assert all((FOLDER / f"{name}.yaml").exists() or (FOLDER.parent / f"{name}.yaml").exists() for name in listed)


def test_measurements_belong_to_figures(script):
    names = [script.key(figure) for figure in script.figures()]
    assert len(names) == len(set(names))
    assert set(script.measured()) <= set(names)
    assert all(0 <= accuracy <= 1 for known in script.measured().values() for accuracy in known.values())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_are_valid(path):
    content = yaml.safe_load(path.read_text())
    assert load(content).runs if "base" in content else resolve(content)


def test_figures_pick_runs_of_their_sweep(script):
    """A condition that names what the sweep does not vary would take all runs, or none."""
    for figure in script.figures():
        path = FOLDER / f"{figure['sweep']}.yaml"
        vary = yaml.safe_load((path if path.exists() else FOLDER.parent / path.name).read_text()).get("vary", {})
        assert bool(figure.get("only")) == bool(vary), figure
