"""The table of reproductions, README.md beside this file: what was published and what was measured here.

python experiments/reproductions/table.py [RUNS ...]

published.yaml lists the figures; measured.json holds the test accuracies by figure and seed. With folders of runs, their finished runs are
taken into measured.json first; the table is written anew in any case.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
HEAD = """# Reproductions

Test accuracy in %, read once after the last step: the mean and the standard deviation over seeds (their number in brackets). Settings
were chosen on validation images. Every line is a sweep of this folder or of the one above; its head tells how to run it, and where its
settings come from. A published figure stands beside ours where one is known for the same task; *of* says what network it belongs to, if
another one; † that it was taken from a second source, not read in the paper itself. Where a line has no published figure, hold it against
backpropagation on the same network. CIFAR-10 was read from a mirror, of which 201 of 60,000 images are JPEG copies of the published ones;
its 300 steps tell who learns quickly, not who gets far. Rules that paint labels on the image stay low there: a convolution sees the ten
painted numbers at one corner alone, and what tells labels apart is little beside the goodness of all other positions.

This page is generated: `python experiments/reproductions/table.py RUNS` takes in finished runs, and writes it.
"""


def key(figure: Mapping[str, Any]) -> str:
    """What a figure is filed under."""
    return f"{figure['sweep']}: {figure['rule']}"


def figures() -> list[dict[str, Any]]:
    """The list of published.yaml."""
    return yaml.safe_load((HERE / "published.yaml").read_text())


def measured() -> dict[str, dict[str, float]]:
    """Test accuracies by figure and seed."""
    path = HERE / "measured.json"
    return json.loads(path.read_text()) if path.exists() else {}


def at(config: Any, path: str) -> Any:
    """The value of a dotted key; None if there is none."""
    for name in path.split("."):
        config = config[int(name)] if isinstance(config, list) else config.get(name) if isinstance(config, dict) else None
    return config


def take_in(roots: Iterable[Path], known: dict[str, dict[str, float]]) -> int:
    """Add the finished runs below some folders; returns how many were taken."""
    from locallearn.experiment.store import Store, run_directories

    taken = 0
    for directory in (folder for root in roots for folder in run_directories(root)):
        store = Store(directory)
        config, source, ending = store.read_config() or {}, store.read("meta.json").get("source"), store.read("result.json")
        if not ending or not source:
            continue
        for figure in figures():
            if figure["sweep"] == Path(source).stem and all(at(config, path) == value for path, value in figure.get("only", {}).items()):
                known.setdefault(key(figure), {})[str(config["seed"])] = ending["test_accuracy"]
                taken += 1
    return taken


def cell(accuracies: Mapping[str, float]) -> str:
    """Mean, deviation, number of seeds."""
    values = [100 * accuracy for accuracy in accuracies.values()]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} ({len(values)})"


def line(figure: Mapping[str, Any], known: Mapping[str, Mapping[str, float]]) -> str:
    """A figure's line of the table."""
    published = f"{figure['published']:.2f}" if "published" in figure else "–"
    published += "†" if figure.get("second_hand") else ""
    published += f" *of {figure['of']}*" if "of" in figure else ""
    here = known.get(key(figure))
    place = figure["sweep"]
    path = f"{place}.yaml" if (HERE / f"{place}.yaml").exists() else f"../{place}.yaml"
    ours = cell(here) if here else f"not run: {figure.get('gap', 'time')}"
    return f"| {figure['rule']} | [{figure['network']}]({path}) | {published} | {ours} | {figure.get('source', '')} |"


def table() -> str:
    """The page."""
    known, parts = measured(), [HEAD]
    listed = figures()
    for data in dict.fromkeys(figure["data"] for figure in listed):
        parts.append(f"\n## {data}\n\n| rule | network | published | here | source |\n|---|---|---|---|---|")
        parts += [line(figure, known) for figure in listed if figure["data"] == data]
    return "\n".join(parts) + "\n"


def main(roots: list[str]) -> None:
    """Take in runs, if any; write the page."""
    if roots:
        known = measured()
        print(f"{take_in(map(Path, roots), known)} runs taken in")
        (HERE / "measured.json").write_text(json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    (HERE / "README.md").write_text(table())


if __name__ == "__main__":
    main(sys.argv[1:])
