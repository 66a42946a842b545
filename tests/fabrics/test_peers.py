"""Real Ray actors against the eager fabric, bit for bit and byte for byte; and what happens when one of them dies, stalls or fails."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import ray

from locallearn.cluster import Cluster
from locallearn.codec import CODECS, COMBINATORS
from locallearn.config.run import resolve
from locallearn.errors import LocallearnError, ShardLost
from locallearn.experiment.how import TRANSPORTS
from locallearn.experiment.prepare import prepare
from locallearn.experiment.result import load
from locallearn.networks import Network
from locallearn.rules import RULES
from locallearn.runtime import cluster, supervisor
from locallearn.runtime.cluster import Crew
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.links import listen
from locallearn.runtime.mailbox import WINDOW
from locallearn.runtime.training import Evaluated, Finished, Progress, RolledBack, Snapshot, train

pytestmark = pytest.mark.ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

MODEL = {
    "equilibrium_propagation": {"activation": "hard_sigmoid"},
    "holomorphic_equilibrium_propagation": {"activation": "tanh"},
    "contrastive_hebbian": {"activation": "hard_sigmoid"},
    "channelwise": {"widths": [196, 20, 10, 10, 10]},  # as many units for each of the ten classes
    "deeper_forward": {"widths": [196, 20, 20, 20, 10]},
    "boltzmann": {"activation": "sigmoid"},
    "noprop": {"name": "denoiser", "depth": 4},
    "diffusion_blocks": {"name": "denoiser", "depth": 4},
}
MEMORY = ["error_feedback", "int8"]
PLAIN = [[name] for name in CODECS if name not in COMBINATORS]


def setup_of(rule, codec=("exact",), steps=12, model=None, data=None, **train):
    """A function that makes a run of three shards and four blocks, on few embedded images."""
    config = resolve(
        {
            "rule": {"name": rule},
            "model": {"name": "mlp", "widths": [196, 12, 11, 9, 10], "shards": 3, **MODEL.get(rule, {}), **(model or {})},
            "data": {"name": "fashion14", "limit": 300, "validation": 40, **(data or {})},
            "train": {"steps": steps, "batch": 16, "evaluate_every": 6, **train},
            "codecs": {"default": list(codec)},
        }
    )
    return functools.partial(prepare, config)


@pytest.fixture(scope="module")
def hired():
    with Crew(3) as crew:
        yield crew


@pytest.fixture(params=TRANSPORTS)
def crew(hired, request):
    """The same actors for every test; each run has links of its own."""
    hired.transport = request.param
    return hired


EVERYDAY = ["backprop", "feedback_alignment", "direct_feedback", "predictive_coding", "equilibrium_propagation"]
EVERYDAY += ["local_classifier", "mono_forward", "forward_forward", "noprop"]
"""Rules of every way to send; the others, which send in the same ways, are slow tests: each compiles in three processes."""


def everyday_or_slow(rule):
    return pytest.param("socket", rule, MEMORY, 1, marks=() if rule in EVERYDAY else pytest.mark.slow)


def codec_or_slow(codec):
    """Each codec compiles in three processes; what they send is the same as in threads (`test_codecs_in_training.py`)."""
    return pytest.param("socket", "backprop", codec, 1, marks=() if codec[0] in ("int8", "vq") else pytest.mark.slow)


CASES = [
    *(everyday_or_slow(rule) for rule in RULES),  # their lossless evaluation is sent with `exact`
    ("socket", "predictive_coding", ["exact"], 1),
    *(codec_or_slow(codec) for codec in PLAIN if codec != ["exact"]),
    ("socket", "backprop", ["deflate", "difference(0.01)", "int4"], 1),
    pytest.param("socket", "predictive_coding", ["difference(none, 300)", "int4(stochastic)"], 2, marks=pytest.mark.slow),
    ("ray", "mono_forward", MEMORY, 1),
    *((transport, "backprop", MEMORY, 4) for transport in TRANSPORTS),
]


@pytest.mark.parametrize(
    ("crew", "rule", "codec", "microbatches"),
    CASES,
    indirect=["crew"],
    ids=lambda value: "-".join(value) if isinstance(value, list) else str(value),
)
def test_actors_equal_eager_bit_for_bit_and_byte_for_byte(crew, rule, codec, microbatches):
    make = setup_of(rule, codec, microbatches=microbatches)
    theirs = list(crew.train(make))[-1]
    ours = list(train(EagerSession(make())))[-1]
    assert isinstance(theirs, Finished)
    assert len(theirs.shards) == len(ours.shards) == 3
    for there, here in zip(theirs.shards, ours.shards, strict=True):
        assert [a.dtype for a in there] == [a.dtype for a in here]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(there, here, strict=True))
    assert theirs.traffic == ours.traffic
    assert (theirs.test_accuracy, theirs.test_accuracy_lossless) == (ours.test_accuracy, ours.test_accuracy_lossless)


@pytest.mark.parametrize("rule", ["backprop", "local_classifier"])
def test_running_statistics_are_those_of_eager_bit_for_bit(hired, rule):
    hired.transport = "socket"
    make = setup_of(rule, model={"norm": "batch"})
    theirs, ours = list(hired.train(make))[-1], list(train(EagerSession(make())))[-1]
    assert all(a.tobytes() == b.tobytes() for x, y in zip(theirs.shards, ours.shards, strict=True) for a, b in zip(x, y, strict=True))
    assert theirs.test_accuracy == ours.test_accuracy
    stripped = list(train(EagerSession(setup_of(rule, model={"norm": "layer"})())))[-1]
    assert sum(map(len, ours.shards)) == sum(map(len, stripped.shards)) + 2 * 3, "mean and variance of three blocks"


def test_images_are_augmented_as_in_eager_bit_for_bit(hired):
    hired.transport = "socket"
    make = setup_of("direct_feedback", data={"augment": {"crop": 2, "flip": True, "jitter": 1, "cutout": 5}}, microbatches=2)
    theirs, ours = list(hired.train(make))[-1], list(train(EagerSession(make())))[-1]
    assert all(a.tobytes() == b.tobytes() for x, y in zip(theirs.shards, ours.shards, strict=True) for a, b in zip(x, y, strict=True))
    plain = list(train(EagerSession(setup_of("direct_feedback", microbatches=2)())))[-1]
    assert any(a.tobytes() != b.tobytes() for x, y in zip(plain.shards, ours.shards, strict=True) for a, b in zip(x, y, strict=True))


def test_wide_products_have_the_same_bits_in_both(hired, tmp_path):
    """Which depend on how many threads compute them. As a user has it: a command of its own, on as many threads as it takes by itself."""
    settings = {
        "rule": {"name": "backprop"},
        "model": {"name": "mlp", "widths": [196, 512, 512, 10], "shards": 3},
        "data": {"name": "fashion14", "limit": 512},
        "train": {"steps": 4, "batch": 128, "evaluate_every": 4},
    }
    (tmp_path / "wide.yaml").write_text(json.dumps(settings))
    own = {name: value for name, value in os.environ.items() if name != "NPROC"}
    words = ["run", str(tmp_path / "wide.yaml"), "--on", "eager", "--runs", str(tmp_path / "runs"), "-q"]
    subprocess.run([sys.executable, "-m", "locallearn", *words], check=True, env=own, timeout=300)
    (folder,) = (path.parent for path in tmp_path.rglob("result.json"))
    eager = load(folder)
    hired.transport = "socket"
    *_, last = hired.train(functools.partial(prepare, resolve(settings)))
    assert last.test_accuracy == eager.test_accuracy
    assert [array.tobytes() for own in last.shards for array in own] == [array.tobytes() for array in eager.arrays.values()]
    assert json.loads((folder / "meta.json").read_text())["threads"] == 1


def test_an_emulated_network_costs_its_time_and_changes_nothing(crew):
    """Each of six steps waits for four messages in a row, two up and two down; then an evaluation for two."""
    make = setup_of("backprop", steps=6)
    net = Network("far", 1e6, 1e6, 0.1)
    events = list(crew.train(make, network=net))
    ours = list(train(EagerSession(make())))[-1]
    assert all(a.tobytes() == b.tobytes() for x, y in zip(events[-1].shards, ours.shards, strict=True) for a, b in zip(x, y, strict=True))
    (seconds,) = [event.seconds for event in events if isinstance(event, Evaluated) and event.accuracy is not None]
    assert 6 * 4 * 0.1 + 2 * 0.1 < seconds < 6 * 4 * 0.1 + 8


def test_every_evaluation_is_that_of_eager(crew):
    make = setup_of("direct_feedback", MEMORY)
    theirs = [e for e in crew.train(make) if isinstance(e, Evaluated)]
    ours = [e for e in train(EagerSession(make())) if isinstance(e, Evaluated)]
    assert [e._replace(seconds=0, compile_seconds=0) for e in theirs] == [e._replace(seconds=0, compile_seconds=0) for e in ours]


def test_a_snapshot_resumes_bit_equal(crew):
    make = setup_of("backprop", MEMORY)
    whole = list(crew.train(make, keep_seconds=0))
    kept = next(e for e in whole if isinstance(e, Snapshot))
    assert 0 < kept.step < 12
    again = list(crew.train(make, resume=kept))[-1]
    assert again.traffic == whole[-1].traffic
    assert all(a.tobytes() == b.tobytes() for x, y in zip(again.shards, whole[-1].shards, strict=True) for a, b in zip(x, y, strict=True))


def test_a_rule_that_sends_nothing_down_runs_ahead_but_not_without_bound(crew):
    """The top holds the labels; they leave early, so that lower shards need not wait for it, up to a bound."""
    events = crew.train(setup_of("mono_forward", steps=5000, evaluate_every=5000))
    next(e for e in events if isinstance(e, Progress) and e.step > 20)
    top = ray.get(crew.actors[2].status.remote(), timeout=10).step
    os.kill(crew.processes[2], signal.SIGSTOP)
    try:
        time.sleep(2.0)
        steps = [ray.get(actor.status.remote(), timeout=10).step for actor in crew.actors[:2]]
        time.sleep(1.0)
        again = [ray.get(actor.status.remote(), timeout=10) for actor in crew.actors[:2]]
    finally:
        os.kill(crew.processes[2], signal.SIGCONT)
    assert steps[0] - top >= WINDOW // 3
    assert [status.step for status in again] == steps
    assert again[0].waiting == (steps[0], "label", 2)
    events.close()


def test_a_run_that_was_given_up_does_not_disturb_the_next(crew):
    """Its actors were still sending when it was left."""
    events = crew.train(setup_of("mono_forward", steps=5000, evaluate_every=5000))
    next(e for e in events if isinstance(e, Progress) and e.step > 5)
    events.close()
    make = setup_of("backprop")
    theirs, ours = list(crew.train(make))[-1], list(train(EagerSession(make())))[-1]
    assert theirs.traffic == ours.traffic
    assert all(a.tobytes() == b.tobytes() for x, y in zip(theirs.shards, ours.shards, strict=True) for a, b in zip(x, y, strict=True))


def test_a_stalled_shard_is_waited_for(crew):
    events = crew.train(setup_of("backprop", steps=60, evaluate_every=60))
    next(e for e in events if isinstance(e, Progress))
    os.kill(crew.processes[1], signal.SIGSTOP)
    time.sleep(3.0)
    os.kill(crew.processes[1], signal.SIGCONT)
    assert list(events)[-1].step == 60


def fails_in_an_actor(make):
    """A setup that the driver can make and actor 1 cannot."""
    setup = make()
    if "shard-1" in (ray.get_runtime_context().get_actor_name() or ""):
        raise RuntimeError("no such file on this node")
    return setup


def test_a_shard_that_fails_says_which_and_why(crew):
    with pytest.raises(LocallearnError, match="shard 1 failed at step 0: RuntimeError: no such file on this node"):
        list(crew.train(functools.partial(fails_in_an_actor, setup_of("backprop"))))


def test_a_crew_that_cannot_be_placed_says_so(crew):
    with pytest.raises(LocallearnError, match=r"5 shards found no place within 0.5 s\n  asked for  each: 1 CPU\n"):
        Crew(5, cluster=Cluster(timeout=0.5)).__enter__()


def test_a_range_of_ports_that_is_too_small_is_told_in_a_sentence(hired, monkeypatch):
    hired.transport = "socket"
    with listen("127.0.0.1", None) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(hired, "cluster", replace(hired.cluster, ports=(port, port)))
        with pytest.raises(LocallearnError) as failure:
            list(hired.train(setup_of("backprop")))
    sentence = f"every port from {port} to {port} is taken on 127.0.0.1: a wider range is needed, one for each shard there"
    assert str(failure.value) == sentence


def test_no_ray_at_the_address():
    script = "from locallearn.runtime.cluster import Crew\nCrew(2, address='127.0.0.1:1').__enter__()"
    import subprocess

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert "NoRay: no Ray answers at `127.0.0.1:1`" in ended.stderr


def test_arrays_of_a_run_are_numpy_arrays(crew):
    final = list(crew.train(setup_of("backprop")))[-1]
    assert all(isinstance(a, np.ndarray) for shard in final.shards for a in shard)


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_shard_that_dies_is_noticed_at_once_and_named(hired, transport, monkeypatch):
    """Last: it ends a crew, and with it every process; the one that the other tests shared makes room. What follows: `test_survival.py`."""
    monkeypatch.setattr("locallearn.runtime.supervisor.ROLLBACKS", 0)
    hired.__exit__()
    crew = Crew(3, transport=transport).__enter__()
    events = crew.train(setup_of("backprop", steps=100000, evaluate_every=1000), alone=False)
    next(e for e in events if isinstance(e, Progress) and e.step > 10)
    killed = time.perf_counter()
    os.kill(crew.processes[2], signal.SIGKILL)
    with pytest.raises(ShardLost, match=r"shard 2 died at step \d+ \(shard 1 was waiting for `error` of step \d+ from shard 2\)"):
        list(events)
    assert time.perf_counter() - killed < 5
    crew.__exit__()
    deadline = time.perf_counter() + 10
    while time.perf_counter() < deadline and any(map(alive, crew.processes)):
        time.sleep(0.1)
    assert not any(map(alive, crew.processes))


@pytest.mark.slow
def test_a_shard_that_stands_still_for_long_is_replaced(crew, monkeypatch):
    """Frozen, as its machine may be: it holds its links, and Ray takes it for alive."""
    monkeypatch.setattr(supervisor, "MUTE_SECONDS", 2.0)
    monkeypatch.setattr(supervisor, "LINK_SECONDS", 2.0)
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 5.0)
    make = setup_of("backprop", steps=400, evaluate_every=200)
    events, frozen = [], False
    for event in crew.train(make, keep_seconds=0.5):
        events.append(event)
        if isinstance(event, Progress) and event.step > 20 and not frozen:
            os.kill(crew.processes[1], signal.SIGSTOP)
            frozen = True
    ours = list(train(EagerSession(make())))[-1]
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert back.reason.startswith("shard 1 died at step")
    assert events[-1].traffic == ours.traffic
    assert all(a.tobytes() == b.tobytes() for x, y in zip(events[-1].shards, ours.shards, strict=True) for a, b in zip(x, y, strict=True))
