"""Two nodes of Ray in namespaces of their own, joined by a slow cable: runs end, and an interface counts what we say it does.

As root, with `ip` and `tc`; skipped elsewhere. Minutes: the cable is as slow as it says.
"""

import json
import sys

import pytest
import yaml

from locallearn.experiment.store import SUFFIX
from locallearn.traffic import PACKET_HEADERS, Channel, Traffic
from tests.fabrics import namespaces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(not namespaces.can(), reason="takes root, and the programs ip and tc"),
]


@pytest.fixture(scope="module")
def machines():
    with namespaces.joined(), namespaces.nodes():
        yield
        namespaces.limit(None)


@pytest.mark.parametrize("rate", ["1mbit", "256kbit"])
def test_a_run_over_a_slow_cable_ends_with_the_same_bits(machines, rate, tmp_path):
    """What the cable carried is at least what was metered; and the result is the one in one process."""
    model = {"name": "mlp", "widths": [196, 16, 10], "shards": 2}
    train = {"steps": 40, "batch": 50, "evaluate_every": 20}
    run = {"rule": {"name": "backprop"}, "model": model, "data": {"name": "fashion14", "validation": 100}, "train": train}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(run))
    namespaces.limit(rate)
    before = namespaces.crossed()
    command = ["-m", "locallearn", "run", str(tmp_path / "x.yaml"), "--runs", str(tmp_path)]
    namespaces.within(namespaces.HERE[0], sys.executable, *command, "--on", "ray", "--address", namespaces.ADDRESS, "-q", timeout=500)
    carried = sum(now - then for now, then in zip(namespaces.crossed(), before, strict=True))
    namespaces.within(namespaces.HERE[0], sys.executable, *command, "--on", "eager", "-q", timeout=500)
    apart, together = (json.loads(next(tmp_path.rglob(f"seed-0{SUFFIX[on]}/result.json")).read_text()) for on in ("ray", "eager"))
    assert carried > apart["bytes"] > 2 * 40 * 50 * 16 * 4
    for key in ("step", "test_accuracy", "bytes", "messages"):
        assert apart[key] == together[key]


def test_the_cable_carries_what_is_counted_as_wire(machines):
    """For messages of each size, less what Ray says meanwhile: a frame, its packets' headers, and up to one acknowledgement, within 4 %."""
    namespaces.limit(None)
    inside = [sys.executable, "-m", "tests.fabrics.namespaces", "--inside"]
    rows = json.loads(namespaces.within(namespaces.HERE[0], *inside, timeout=600).stdout.splitlines()[-1])
    assert [row["payload"] for row in rows] == list(namespaces.SIZES)
    for row in rows:
        counted = Traffic(level="wire")
        counted.count(Channel("activation", "activation", 0, 1), row["payload"])
        for way in ("up", "down"):
            assert 0.96 * (counted.bytes - PACKET_HEADERS) < row[way] < 1.04 * counted.bytes
