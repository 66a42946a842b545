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
    "deep_supervision": "deep_supervision:DeepSupervision",
    "solo": "solo:Solo",
    "feedback_alignment": "feedback_alignment:FeedbackAlignment",
    "sign_symmetry": "sign_symmetry:SignSymmetry",
    "kolen_pollack": "kolen_pollack:KolenPollack",
    "direct_feedback": "direct_feedback:DirectFeedback",
    "direct_kolen_pollack": "direct_kolen_pollack:DirectKolenPollack",
    "drtp": "drtp:DirectRandomTargetProjection",
    "pepita": "pepita:Pepita",
    "predictive_coding": "predictive_coding:PredictiveCoding",
    "incremental_predictive_coding": "incremental_predictive_coding:IncrementalPredictiveCoding",
    "nudged_predictive_coding": "nudged_predictive_coding:NudgedPredictiveCoding",
    "zero_divergence": "zero_divergence:ZeroDivergence",
    "error_predictive_coding": "error_predictive_coding:ErrorPredictiveCoding",
    "equilibrium_propagation": "equilibrium_propagation:EquilibriumPropagation",
    "holomorphic_equilibrium_propagation": "holomorphic_equilibrium_propagation:HolomorphicEquilibriumPropagation",
    "contrastive_hebbian": "contrastive_hebbian:ContrastiveHebbian",
    "boltzmann": "boltzmann:Boltzmann",
    "dual_propagation": "dual_propagation:DualPropagation",
    "difference_target": "difference_target:DifferenceTarget",
    "local_difference_reconstruction": "local_difference_reconstruction:LocalDifferenceReconstruction",
    "counter_current": "counter_current:CounterCurrent",
    "synthetic_gradients": "synthetic_gradients:SyntheticGradients",
    "features_replay": "features_replay:FeaturesReplay",
    "local_classifier": "local_classifier:LocalClassifier",
    "decoupled_greedy": "decoupled_greedy:DecoupledGreedy",
    "auglocal": "auglocal:AugLocal",
    "backlink": "backlink:BackLink",
    "cascaded_forward": "cascaded_forward:CascadedForward",
    "signal_propagation": "signal_propagation:SignalPropagation",
    "mono_forward": "mono_forward:MonoForward",
    "forward_forward": "forward_forward:ForwardForward",
    "symba": "symba:SymBa",
    "selective_goodness": "selective_goodness:SelectiveGoodness",
    "channelwise": "channelwise:Channelwise",
    "deeper_forward": "deeper_forward:DeeperForward",
    "softhebb": "softhebb:SoftHebb",
    "clapp": "clapp:CLAPP",
    "blockwise_barlow_twins": "blockwise_barlow_twins:BlockwiseBarlowTwins",
    "spsa": "spsa:SPSA",
    "forward_gradient": "forward_gradient:ForwardGradient",
    "activity_forward_gradient": "activity_forward_gradient:ActivityForwardGradient",
    "node_perturbation": "node_perturbation:NodePerturbation",
    "noprop": "noprop:NoProp",
    "diffusion_blocks": "diffusion_blocks:DiffusionBlocks",
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
