"""Learning rules by name. One file and one line here add a rule: the schema, the command line and the tests pick it up."""

from locallearn.rules.backprop import Backprop
from locallearn.rules.direct_feedback import DirectFeedback
from locallearn.rules.equilibrium_propagation import EquilibriumPropagation
from locallearn.rules.feedback_alignment import FeedbackAlignment
from locallearn.rules.forward_forward import ForwardForward
from locallearn.rules.local_classifier import LocalClassifier
from locallearn.rules.mono_forward import MonoForward
from locallearn.rules.predictive_coding import PredictiveCoding

RULES: dict[str, type] = {
    "backprop": Backprop,
    "feedback_alignment": FeedbackAlignment,
    "direct_feedback": DirectFeedback,
    "predictive_coding": PredictiveCoding,
    "equilibrium_propagation": EquilibriumPropagation,
    "local_classifier": LocalClassifier,
    "mono_forward": MonoForward,
    "forward_forward": ForwardForward,
}
