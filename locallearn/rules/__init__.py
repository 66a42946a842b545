"""Learning rules by name. One file and one line here add a rule: the schema, the command line and the tests pick it up."""

from locallearn.rules.backprop import Backprop

RULES: dict[str, type] = {
    "backprop": Backprop,
}
