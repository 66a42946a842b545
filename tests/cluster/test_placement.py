"""Where shards live: what they reserve and on which nodes, the cores that they compute on, and what is said where there is no place."""

import itertools
import re
import subprocess
import sys
import time
import urllib.request

import pytest
import ray
from ray.cluster_utils import Cluster as Machines

from locallearn.cluster import Cluster
from locallearn.config.run import resolve, write_yaml
from locallearn.data.dataset import Dataset
from locallearn.errors import ConfigError
from locallearn.experiment.how import How
from locallearn.experiment.prepare import Making, prepare
from locallearn.experiment.run import _paced
from locallearn.runtime.cluster import Crew
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.placement import Node, Place, Seat, Share, Unplaced, Wanted, fits, roomier, shares, told
from locallearn.runtime.training import train

CORES = (3, 5, 6, 7)

# Ray starts the machines of a test by forking, which JAX dislikes if another test had it begun; the children become other programs at once.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

# what a file may ask for

RUN = {
    "rule": {"name": "direct_feedback"},
    "model": {"name": "mlp", "widths": [196, 12, 11, 10], "shards": 3},
    "data": {"name": "fashion14", "limit": 300, "validation": 40},
    "train": {"steps": 6, "batch": 16, "evaluate_every": 6},
}


def test_what_is_asked_of_a_cluster_is_no_part_of_a_runs_identity():
    asked = resolve({**RUN, "cluster": {"spread": "strict", "cpus": [1, 2, 1], "resources": {"rack": 1}, "timeout": "2 min"}})
    plain = resolve(RUN)
    assert asked.digest() == plain.digest()
    assert write_yaml(asked) == write_yaml(plain)
    assert asked.cluster == Cluster("strict", (1, 2, 1), 0, {"rack": 1}, 120)
    assert (asked.aside()["cluster"], plain.aside()["cluster"]) == (
        {"spread": "strict", "cpus": [1, 2, 1], "resources": {"rack": 1}, "timeout": 120},
        {},
    )


def test_a_run_may_ask_for_its_transport_and_a_flag_wins():
    asked, plain = resolve({**RUN, "cluster": {"transport": "ray"}}), resolve(RUN)
    assert asked.digest() == plain.digest()
    assert asked.aside()["cluster"] == {"transport": "ray"}
    found = [How("ray", transport=flag).carrier(config) for config in (plain, asked) for flag in (None, "socket", "ray")]
    assert found == ["socket", "socket", "ray", "ray", "socket", "ray"]


@pytest.mark.parametrize(("transport", "noted"), [("ray", True), ("socket", False)])
def test_that_calls_of_ray_are_not_what_wire_counts_is_noted(transport, noted):
    config = resolve({**RUN, "count": "wire", "cluster": {"transport": transport}})
    assert any("count: wire" in note for note in _paced(config, How("ray"))) is noted
    assert not list(_paced(config, How("eager")))


@pytest.mark.parametrize(
    ("cluster", "mistake"),
    [
        ({"spread": "strikt"}, "cluster.spread: `strikt`.*did you mean `strict`"),
        ({"transport": "sockets"}, "cluster.transport: `sockets`.*did you mean `socket`"),
        ({"sprad": "strict"}, "cluster.sprad: unknown key; did you mean `spread`"),
        ({"cpus": [1, 2]}, "cluster.cpus.*has 2 entries for 3 shards"),
        ({"resources": [{"rack": 1}]}, "cluster.resources.*has 1 entry for 3 shards"),
        ({"cpus": -1}, "cluster.cpus: `-1`"),
        ({"cpus": [1, 0, 1]}, "shard 1 would reserve nothing at all"),
        ({"resources": {"GPU": 1}}, "have the keys `cpus` and `gpus`"),
        ({"timeout": "soon"}, "is no time; times are written as 60 s"),
        ({"timeout": 0}, "cluster.timeout: `0`"),
    ],
)
def test_mistakes_are_found_before_anything_runs(cluster, mistake):
    with pytest.raises(ConfigError, match=mistake):
        resolve({**RUN, "cluster": cluster})


def test_each_shard_reserves_its_own():
    cluster = Cluster(cpus=(1, 4, 0.5), gpus=1, resources=({"rack": 1}, {}, {}))
    assert [cluster.bundle(k) for k in range(3)] == [{"CPU": 1, "GPU": 1, "rack": 1}, {"CPU": 4, "GPU": 1}, {"CPU": 0.5, "GPU": 1}]
    assert cluster.total(3) == {"CPU": 5.5, "GPU": 3, "rack": 1}
    assert not list(cluster.misfits(3))


# the cores that a shard computes on


def seats(*machines):
    return [Seat(100 + k, machine, CORES) for k, machine in enumerate(machines)]


@pytest.mark.parametrize("cluster", [Cluster(), Cluster(cpus=2), Cluster(cpus=(1, 4, 0.5)), Cluster(cpus=0.5, threads=(8, 1, 3))])
def test_a_shard_computes_on_as_many_threads_wherever_it_sits(cluster):
    """Nodes of two, four and sixteen cores; alone, or with others: last bits depend on the number of threads."""
    everywhere = [Seat(k, f"{cores} cores", tuple(range(cores))) for k, cores in enumerate((2, 4, 16))]
    for machines in itertools.product(everywhere, repeat=3):
        threads = [share.threads for share in shares(machines, cluster)]
        assert threads == [cluster.computing] * 3 if isinstance(cluster.computing, int) else threads == list(cluster.computing)


def test_a_shard_has_the_threads_that_it_asks_for_else_as_many_as_the_cpus_that_it_reserves():
    asked = [Cluster(), Cluster(cpus=0.5), Cluster(cpus=3), Cluster(cpus=(2, 0.5)), Cluster(cpus=2, threads=5), Cluster(threads=(1, 2))]
    assert [cluster.computing for cluster in asked] == [1, 1, 3, (2, 1), 5, (1, 2)]


def test_a_shard_alone_on_its_node_is_not_kept_to_a_core():
    assert shares(seats("a", "b"), Cluster()) == [Share(1, ())] * 2


def test_as_many_shards_as_cores_have_one_each():
    single = [Share(1, (core,)) for core in CORES]
    assert shares(seats(*"aabaa"), Cluster()) == [*single[:2], Share(1, ()), *single[2:]]


def test_more_shards_than_cores_take_turns():
    assert [share.cores for share in shares(seats(*"aaaaaa"), Cluster())] == [(3,), (5,), (6,), (7,), (3,), (5,)]


def test_a_shard_computes_on_what_it_was_given():
    assert shares(seats("a", "b"), Cluster(cpus=2)) == [Share(2, ())] * 2, "others may have the other two"
    assert shares(seats("a", "a"), Cluster(cpus=2)) == [Share(2, (3, 5)), Share(2, (6, 7))]
    assert shares(seats("a", "a"), Cluster(cpus=(3, 0.5))) == [Share(3, (3, 5, 6)), Share(1, (7,))]
    assert shares(seats("a"), Cluster(cpus=16)) == [Share(16, ())]


def test_xla_keeps_to_the_threads_of_a_share():
    script = """
import os, sys
from locallearn.runtime.placement import Share, sit
sit(Share(int(sys.argv[1]), tuple(sorted(os.sched_getaffinity(0)))[:1]))
import jax
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((300, 300))).block_until_ready()
names = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
print(sum("XLAEigen" in name for name in names), len(os.sched_getaffinity(0)))
"""
    for threads in ("1", "3"):
        done = subprocess.run([sys.executable, "-c", script, threads], capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.split() == [threads, "1"]


# who leaves for a node that joins


@pytest.mark.parametrize(
    ("cluster", "machines", "found"),
    [
        (Cluster(), "aab", (0, "c")),
        (Cluster(cpus=(2, 1, 1)), "aab", (1, "c")),
        (Cluster(cpus=2), "aab", None),
        (Cluster(), "abc", None),
        (Cluster(), "ab", None),
        (Cluster("pack"), "aab", None),
    ],
)
def test_who_shares_a_node_leaves_for_one_that_is_empty_and_large_enough(cluster, machines, found):
    there = [Node("10.0.0.1", {"CPU": 4}, "a"), Node("10.0.0.2", {"CPU": 4}, "b"), Node("10.0.0.3", {"CPU": 1}, "c")]
    assert roomier(cluster, dict(enumerate(seats(*machines))), there) == found


# what is said where there is no place


def test_who_finds_no_place_learns_what_was_asked_for_and_what_there_is():
    nodes = [Node("10.0.0.1", {"CPU": 8, "memory": 1e9}), Node("10.0.0.2", {"CPU": 2, "GPU": 1})]
    text = told(Cluster("strict", (4, 4, 1), (1, 1, 0)), 3, 60, nodes, {"CPU": 3.0})
    assert text.splitlines() == [
        "3 shards found no place within 1 min",
        "  asked for  shards 0, 1: 4 CPU, 1 GPU",
        "  asked for  shard 2: 1 CPU",
        "             3 different nodes (cluster.spread: strict)",
        "  there is   node 10.0.0.1: 8 CPU, 0 GPU",
        "             node 10.0.0.2: 2 CPU, 1 GPU",
        "  free now   3 CPU, 0 GPU on all nodes together",
        "Start more nodes, or ask for less under `cluster:`, such as --set cluster.spread=spread.",
    ]
    many = told(Cluster(), 2, 60, [Node(f"10.0.0.{k}", {"CPU": 1}) for k in range(200)], {})
    assert len(many.splitlines()) < 20
    assert "and 190 more nodes" in many


# what has a place at the same time


def test_runs_fit_as_long_as_each_of_their_shards_has_room():
    nodes = [Node("a", {"CPU": 4}), Node("b", {"CPU": 2, "GPU": 1})]
    one, pair, strict = Wanted(({"CPU": 1},), "spread"), Wanted(({"CPU": 1},) * 2, "spread"), Wanted(({"CPU": 1},) * 2, "strict")
    assert fits([one] * 6, nodes)
    assert not fits([one] * 7, nodes)
    assert fits([pair] * 3, nodes)
    assert not fits([pair] * 3 + [one], nodes)
    assert fits([strict] * 2, nodes)
    assert not fits([strict] * 3, nodes), "the second node has no third CPU"
    assert not fits([Wanted(({"CPU": 3},) * 2, "spread")], nodes), "six CPUs, but not three and three"
    assert fits([Wanted(({"CPU": 1, "GPU": 1},), "pack"), *[one] * 5], nodes)
    assert not fits([Wanted(({"CPU": 1, "GPU": 1},), "pack")] * 2, nodes)
    assert fits([Wanted(({"CPU": 1},) * 2, "pack"), Wanted(({"CPU": 4},), "pack")], nodes), "the small one leaves the large node alone"


def test_a_task_reserves_as_much_as_its_greediest_shard():
    asked = Cluster(cpus=(1, 4, 0.5), gpus=(0, 0, 1), resources=({"rack": 1}, {}, {"rack": 2})).of_task(3)
    assert asked.bundle(0) == {"CPU": 4, "GPU": 1, "rack": 2}
    assert Cluster().of_task(3).bundle(0) == {"CPU": 1}
    assert (asked.computing, Cluster().of_task(3).computing) == (4, 1)


# data is read where it is used


class Counting:
    """A data set that notes how often it is read."""

    name, classes, example_shape, train_size, test_size = "counting", 3, (12,), 60, 17

    def __init__(self, split):
        self.reads = 0
        self._whole = Dataset.of("counting", split.train, split.test)

    def load(self):
        self.reads += 1
        return self._whole


def test_only_the_ends_read_data_and_each_keeps_its_own(tiny_split):
    data = Counting(tiny_split)
    config = resolve({**RUN, "model": {"name": "mlp", "widths": [12, 8, 7, 3], "shards": 3}, "data": {"name": data, "validation": 11}})
    whole = prepare(config)
    making = Making.of(config, whole)
    data.reads = 0
    bottom, middle, top = (making.of_shard(k) for k in range(3))
    assert data.reads == 2
    for k, part in enumerate(whole.split):
        assert bottom.split[k].x.tobytes() == part.x.tobytes()
        assert top.split[k].y.tobytes() == part.y.tobytes()
        for absent in (bottom.split[k].y, middle.split[k].x, middle.split[k].y, top.split[k].x):
            assert not absent.any()
            assert set(absent.strides) <= {0}, "no memory for what is not here"
    for setup in (bottom, middle, top):
        assert [(p.x.shape, p.x.dtype, p.y.shape, p.y.dtype) for p in setup.split] == [
            (p.x.shape, p.x.dtype, p.y.shape, p.y.dtype) for p in whole.split
        ]
        assert setup.plan_step(setup.stages[0]).traffic == whole.plan_step(whole.stages[0]).traffic
        assert (setup.evaluation_batch, setup.evaluate_every, setup.intake) == (whole.evaluation_batch, whole.evaluate_every, whole.intake)


# three nodes


@pytest.fixture(scope="module")
def address():
    """Of a Ray of three nodes, each with four CPUs and one of them with a rack; this process has joined it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_metrics_report_interval_ms", "500")
    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    machines.add_node(num_cpus=4)
    machines.add_node(num_cpus=4, resources={"rack": 1})
    ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
    yield machines.address
    ray.shutdown()
    machines.shutdown()
    patch.undo()


@ray.remote
def machine():
    return ray.get_runtime_context().get_node_id()


def machines_of(cluster, shards):
    """The nodes that the shards were given, in order."""
    place = Place(cluster, shards, cluster.timeout)
    try:
        return ray.get([machine.options(**place.options(k)).remote() for k in range(shards)])
    finally:
        place.release()


on_ray = pytest.mark.ray


@on_ray
def test_a_shard_on_each_node_gives_the_result_of_one_process(address):
    config = resolve({**RUN, "cluster": {"spread": "strict"}})
    with Crew(3, address=address, cluster=config.cluster, name="some") as crew:
        assert len({seat.machine for seat in ray.get([actor.seat.remote() for actor in crew.actors])}) == 3
        setup = prepare(config)
        theirs = list(crew.train(Making.of(config, setup)))[-1]
        told = scraped(lambda found: sum(found.values()) >= sum(theirs.traffic.by_kind().values()))
    ours = list(train(EagerSession(setup)))[-1]
    assert all(a.tobytes() == b.tobytes() for x, y in zip(theirs.shards, ours.shards, strict=True) for a, b in zip(x, y, strict=True))
    assert theirs.traffic == ours.traffic
    assert told == {(c.message, c.kind, f"{c.src}>{c.dst}", str(c.src)): theirs.traffic.framed(c) for c in theirs.traffic.messages}


def scraped(enough):
    """What a Prometheus fetches from the three nodes: bytes by message, kind, link and shard, as soon as they are `enough`."""
    deadline = time.monotonic() + 60
    while True:
        lines = []
        for node in ray.nodes():
            with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
                lines += answer.read().decode().splitlines()
        found = {}
        for line in lines:
            if line.startswith("ray_locallearn_sent_bytes_total{"):
                tags = dict(re.findall(r'(\w+)="([^"]*)"', line))
                assert tags["run"] == "some"
                found[tags["message"], tags["kind"], tags["link"], tags["shard"]] = float(line.rsplit(" ", 1)[1])
        if enough(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


@on_ray
def test_shards_have_nodes_of_their_own_as_long_as_there_are_some(address):
    assert len(set(machines_of(Cluster(), 3))) == 3
    assert len(set(machines_of(Cluster(cpus=0.5), 6))) == 3
    assert len(set(machines_of(Cluster("pack"), 2))) == 1


@on_ray
def test_a_shard_can_ask_for_a_certain_node(address):
    (rack,) = [node["NodeID"] for node in ray.nodes() if "rack" in node["Resources"]]
    machines = machines_of(Cluster(resources=({}, {}, {"rack": 1})), 3)
    assert machines[2] == rack
    assert len(set(machines)) == 3


@on_ray
@pytest.mark.parametrize(
    ("cluster", "shards", "asked"),
    [
        (Cluster("strict", timeout=0.5), 4, "each: 1 CPU\n             4 different nodes"),
        (Cluster(cpus=5, timeout=0.5), 1, "each: 5 CPU"),
        (Cluster(resources={"rack": 1}, timeout=0.5), 2, "each: 1 CPU, 1 rack"),
        (Cluster(gpus=1, timeout=0.5), 2, "each: 1 CPU, 1 GPU"),
    ],
)
def test_what_cannot_be_met_ends_with_what_there_is(address, cluster, shards, asked):
    with pytest.raises(Unplaced, match=r"found no place within 0\.5 s") as found:
        machines_of(cluster, shards)
    assert f"asked for  {asked}" in str(found.value)
    assert str(found.value).count("node ") == 3


@on_ray
def test_places_are_given_back(address):
    for _ in range(5):
        Place(Cluster("strict", cpus=4), 3, 30).release()
