"""Models: lists of blocks. One line in `MODELS` adds a model to the YAML schema and the command line."""

from locallearn.models.code_convnet import CodeConvnet
from locallearn.models.code_mlp import CodeMLP
from locallearn.models.convnet import VGG5, Convnet, SoftHebb3, VGG8b, VGG11b
from locallearn.models.denoiser import Denoiser
from locallearn.models.mlp import MLP
from locallearn.models.residual import ResNet18, ResNet20
from locallearn.models.residual_mlp import ResidualMLP
from locallearn.models.transformer import Transformer

MODELS: dict[str, type] = {
    "mlp": MLP,
    "convnet": Convnet,
    "vgg5": VGG5,
    "vgg8b": VGG8b,
    "vgg11b": VGG11b,
    "softhebb3": SoftHebb3,
    "resnet20": ResNet20,
    "resnet18": ResNet18,
    "residual_mlp": ResidualMLP,
    "code_mlp": CodeMLP,
    "code_convnet": CodeConvnet,
    "denoiser": Denoiser,
    "transformer": Transformer,
}
