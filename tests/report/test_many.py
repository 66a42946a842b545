"""A report over as many runs as a large sweep has."""

import json
import random
import shutil
import time

import pytest
import yaml

from locallearn.cli import code_of
from locallearn.report.report import write_report
from locallearn.report.table import rows_below

RUN = {
    "rule": {"name": "backprop"},
    "model": {"name": "mlp", "widths": [40, 16, 16, 16, 16, 10], "shards": 4},
    "data": {"name": "strokes1d", "samples": 400, "test_samples": 100, "validation": 0.1},
    "train": {"steps": 20, "batch": 20, "evaluate_every": 2},
}
RULES = ("backprop", "direct_feedback", "local_classifier", "mono_forward", "predictive_coding")
SEEDS, VARIANTS = 5, 80


@pytest.mark.slow
def test_two_thousand_runs_take_less_than_twenty_seconds(tmp_path):
    """Real runs of five rules, each 400 times with other settings, seeds and numbers: 20,000 evaluations."""
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(RUN))
    for rule in RULES:
        words = ["run", str(tmp_path / "one.yaml"), "-q", "--runs", str(tmp_path / "real"), "--set", f"rule.name={rule}"]
        assert code_of(words) == 0
    rng = random.Random(0)
    for variant, real in ((v, r) for v in range(VARIANTS) for r in sorted((tmp_path / "real" / "one").iterdir())):
        level, share = rng.uniform(0.3, 0.9), 10 ** rng.uniform(-3, 0)
        for seed in range(SEEDS):
            vary(real / "seed-0", tmp_path / "many" / f"{real.name}-{variant}" / f"seed-{seed}", level + rng.gauss(0, 0.01), share, variant)
    begin = time.process_time()
    rows = rows_below(tmp_path / "many")
    write_report(rows, tmp_path / "many", tmp_path / "out")
    assert len(rows) == 20_000
    took = time.process_time() - begin
    print(f"{took:.1f} s of processor time")
    assert took < 20
    assert ">2000<" in (tmp_path / "out" / "report.html").read_text()


def vary(real, copy, accuracy, share, variant):
    """The run with another accuracy and number of bytes."""
    copy.mkdir(parents=True)
    for name in ("config.yaml", "plan.json"):
        shutil.copy(real / name, copy)
    meta = json.loads((real / "meta.json").read_text())
    meta["varied"] = {**meta.get("varied", {}), "train.optimizer.rate": variant}
    (copy / "meta.json").write_text(json.dumps(meta))
    records = [json.loads(line) for line in (real / "metrics.jsonl").read_text().splitlines()]
    for k, record in enumerate(records, start=1):
        record |= {"bytes": int(record["bytes"] * share), "validation_accuracy": accuracy * (1 - 0.5 / k)}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = json.loads((real / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps({**result, "test_accuracy": accuracy}))
