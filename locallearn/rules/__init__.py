"""Learning rules by name. One file and one line here add a rule: the schema, the command line and the tests pick it up.

Another package adds its own through the entry point group `locallearn.rules`, in the same words: `name = "module:Class"`. A rule is
imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points

OURS = {
    "backprop": "backprop:Backprop",
    "feedback_alignment": "feedback_alignment:FeedbackAlignment",
    "direct_feedback": "direct_feedback:DirectFeedback",
    "predictive_coding": "predictive_coding:PredictiveCoding",
    "equilibrium_propagation": "equilibrium_propagation:EquilibriumPropagation",
    "local_classifier": "local_classifier:LocalClassifier",
    "decoupled_greedy": "decoupled_greedy:DecoupledGreedy",
    "mono_forward": "mono_forward:MonoForward",
    "forward_forward": "forward_forward:ForwardForward",
    "channelwise": "channelwise:Channelwise",
    "deeper_forward": "deeper_forward:DeeperForward",
}
"""Name: "module of this package:class"."""


class Rules(Mapping[str, type]):
    """The rules by name, ours before those of other packages; none is imported, nor looked for elsewhere, before it is asked for."""

    @cached_property
    def _others(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group="locallearn.rules") if point.name not in OURS}

    def __getitem__(self, name: str) -> type:
        place = f"{__name__}.{OURS[name]}" if name in OURS else self._others[name]
        module, _, cls = place.partition(":")
        return getattr(import_module(module), cls)

    def __iter__(self) -> Iterator[str]:
        return iter([*OURS, *self._others])

    def __len__(self) -> int:
        return len(OURS) + len(self._others)


RULES = Rules()
