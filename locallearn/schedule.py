"""The section `schedule`: the virtual clock under which a run trains, and how far its shards may run ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from locallearn.fields import Positive
from locallearn.networks import Line

Steps = Annotated[int, Ge(0), Le(1024)]


@dataclass(frozen=True)
class Schedule:
    """A clock on which a run is told how late it is, on an imagined network.

    network: that the shards send over, by name or in words. step: seconds that one step takes to compute, all shards together.
    staleness: a shard that waits for what comes down may begin so many further steps, each of which uses, to its end, the weights that it
    began with. On actors these steps are real, and the clock is not needed for them. How late a step is has to be known before it sends
    anything: so frames of variable size, or that may stay away, count at their largest here; `locallearn time` goes by what was sent.
    """

    network: Line | None = None
    step: Positive | None = None
    staleness: Steps = 0

    def problems(self) -> list[tuple[str, str]]:
        """Half a clock."""
        missing = [name for name in ("network", "step") if getattr(self, name) is None]
        return [(missing[0], "is missing: a virtual clock needs `network` and `step`")] if len(missing) == 1 else []
