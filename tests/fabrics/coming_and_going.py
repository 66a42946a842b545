"""A run in one process whose replicas come and go, as a schedule says: what a run on actors that loses some of them is held to."""

from itertools import pairwise

from locallearn.runtime.cuts import Cuts
from locallearn.runtime.regroup import brought, regrouped
from locallearn.runtime.replicated import EagerReplicas
from locallearn.runtime.training import Progress, Snapshot, train

END = 10**9


def scheduled(setup, schedule, end=END):
    """The events of a run, to its end or to a snapshot. schedule: [(from step, the replicas that are there)], the first from step 0."""
    events, was = [], schedule[0][1]
    for (_, now), (stop, _) in pairwise([*schedule, (end, ())]):
        kept = handed_over(setup, events.pop(), was, now) if events else None
        events += until(EagerReplicas(setup, now), kept, stop)
        was = now
    return events


def handed_over(setup, kept, was, now):
    """The snapshot from which the next ones go on."""
    return regrouped(setup, kept, was, now)._replace(traffic=kept.traffic + brought(setup, kept.step, was, now))


def until(session, resume, stop):
    """The events up to the snapshot after step `stop`, or to the end."""
    cuts, reached = Cuts(), [0]
    cuts.announce(stop)
    for event in train(session, resume, 1e9, lambda: reached[0] == stop, cuts):
        reached[0] = event.step if isinstance(event, Progress) else reached[0]
        yield event
        if isinstance(event, Snapshot):
            return
