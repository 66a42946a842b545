"""The shards of a run as threads of this process, linked by sockets: what actors do, without Ray."""

import threading

from locallearn.runtime.cuts import Cuts
from locallearn.runtime.hearing import merge, own_part
from locallearn.runtime.links import Links
from locallearn.runtime.peers import PeersSession
from locallearn.runtime.training import Snapshot, train


class Threads:
    """One machine of those of the replicas that are present in each thread. kept: the snapshots of which every part was taken."""

    def __init__(self, setup, resume=None, keep_seconds=1e9, present=()):
        shards, self._keep_seconds = setup.stages[0].wiring.shards, keep_seconds
        machines = [r * shards + s for r in present or setup.everyone for s in range(shards)]
        self.count, self.top = len(machines), shards - 1
        self.links = [Links(k, "127.0.0.1", 1, b"s" * 32) for k in machines]
        places = {k: one.place for k, one in zip(machines, self.links, strict=True)}
        for one in self.links:
            one.connect([places.get(k) for k in range(shards * setup.replicas.count)])
        self.cuts = [Cuts() for _ in self.links]
        self.sessions = [
            PeersSession(setup, k % shards, link, cuts, replica=k // shards, present=present)
            for k, link, cuts in zip(machines, self.links, self.cuts, strict=True)
        ]
        self.errors, self.events = [], [[] for _ in self.links]
        self.threads = [threading.Thread(target=self._train, args=(k, resume), daemon=True) for k in range(self.count)]
        for thread in self.threads:
            thread.start()

    def _train(self, machine, resume):
        try:
            for event in train(self.sessions[machine], own_part(resume, machine), self._keep_seconds, cuts=self.cuts[machine]):
                self.events[machine].append(event)
        except Exception as error:  # raised by `join`
            self.errors.append(error)
            self._close()

    def announce(self, step):
        return [cuts.announce(step) for cuts in self.cuts]

    def join(self):
        for thread in self.threads:
            thread.join(120)
        self._close()
        if self.errors:
            raise self.errors[0]
        return merge([events[-1] for events in self.events], self.top)

    def _close(self):
        for one in self.links:
            one.close()

    @property
    def kept(self):
        parts = [{event.step: event for event in events if isinstance(event, Snapshot)} for events in self.events]
        return [merge([part[step] for part in parts], self.top) for step in sorted(set.intersection(*map(set, parts)))]
