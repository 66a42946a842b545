"""Run directories written by hand, of which everything is known that a report tells."""

import json

import pytest

from locallearn.experiment.store import Store
from locallearn.report.material import Material
from locallearn.report.table import rows_below

STEPS, BATCH = (50, 100), 10
TARGET = 0.7
RUNS = {  # rule, codecs: test accuracy of seed 0, bytes of the whole training, validation accuracies
    ("backprop", "exact"): (0.90, 4_000_000, (0.60, 0.80)),
    ("backprop", "int8"): (0.86, 1_000_000, (0.55, 0.75)),
    ("mono_forward", "exact"): (0.85, 2_000_000, (0.72, 0.74)),
    ("direct_feedback", "exact"): (0.70, 2_400_000, (0.50, 0.60)),
    ("mono_forward", "none"): (0.50, 0, (0.30, 0.40)),
}
META = {
    "command": "locallearn sweep experiments/made.yaml",
    "started": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
    "git": "1a2b3c4d",
    "host": "here",
    "system": "Linux x86_64",
    "devices": ["cpu"],
    "on": "local",
    "source": "experiments/made.yaml",
}


def write_run(root, rule, codecs, seed, failure=None, reason="steps", planned=None, count="framed", present=(), data="strokes1d"):
    accuracy, total, valid = RUNS[rule, codecs]
    store = Store(root / f"{rule}-{codecs}-00000000" / f"seed-{seed}")
    store.make()
    rate = 0.01 if rule == "backprop" else 0.003
    config = {
        "rule": {"name": rule},
        "model": {"name": "mlp", "shards": 2},
        "data": {"name": data},
        "train": {"optimizer": {"rate": rate}},
        "codecs": {"default": codecs},
        "seed": seed,
    }
    store.begin(json.dumps(config), {**META, "varied": {"rule.name": rule, "codecs.default": codecs}})
    if failure:
        store.fail({"type": "ValueError", "message": failure, "step": 0, "traceback": "Traceback: here"})
        return
    for step, value in zip(STEPS, valid, strict=True):
        sent = total * step // STEPS[-1]
        costs = {"bytes": sent, "bytes_activation": sent, "messages": 2 * step, "hops": step, "bytes_worst_link": sent}
        told = {"train_loss": 1.0, "validation_accuracy": value, "diagnostics": {"angle": [30.0 + seed, 10.0]}}
        store.append({"step": step, "examples": step * BATCH, "seconds": step / 10, **costs, **told})
    store.write_plan({"at_most": False, "count": count, "bytes_by_kind": {"activation": total if planned is None else planned}})
    messages = 100 if total else 0
    sent = {"messages": messages, "payload": total - 20 * messages, "framed": total}
    channel = {"message": "activation", "kind": "activation", "src": 0, "dst": 1, **sent}
    tested = {"test_accuracy": accuracy + 0.01 * seed, "test_accuracy_lossless": accuracy, "traffic": [channel]}
    store.finish({"step": 100, "phase": 0, "reason": reason, "seconds": 10.0, "compile_seconds": 1.0, "present": present, **tested})


def write_all(root):
    for rule, codecs in RUNS:
        for seed in (0, 1, 2):
            write_run(root, rule, codecs, seed)
    write_run(root, "direct_feedback", "exact", 3, failure="<script>alert('no')</script>")
    (root / "sweep.yaml").write_text(f"sweep:\n  target: {{validation_accuracy: {TARGET}}}\n")
    return root


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder of a sweep: three rules, three codecs, three seeds, and one failure."""
    return write_all(tmp_path_factory.mktemp("made") / "made")


@pytest.fixture(scope="session")
def material(made):
    return Material(made, rows_below(made))


@pytest.fixture(scope="session")
def writer():
    return write_run
