"""Models: lists of blocks. One line in `MODELS` adds a model to the YAML schema and the command line."""

from locallearn.models.mlp import MLP

MODELS: dict[str, type] = {"mlp": MLP}
