"""Models: published shapes and parameter counts, convolution and pooling by hand, shortcuts, causality."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from locallearn.block import Block
from locallearn.config.run import resolve
from locallearn.errors import ConfigError
from locallearn.models import MODELS
from locallearn.models.code_convnet import CodeConvnet
from locallearn.models.code_mlp import CodeMLP
from locallearn.models.convnet import VGG5, Convnet, SoftHebb3, VGG8b, VGG11b
from locallearn.models.layers import Conv, Dense, Layer, Pool, pooled, triangle
from locallearn.models.mlp import MLP, PRESETS
from locallearn.models.residual import ResNet18, ResNet20
from locallearn.models.transformer import Transformer

KEY = jax.random.PRNGKey(0)
RNG = np.random.default_rng(0)
CIFAR = (32, 32, 3)


def count(blocks: list[Block]) -> int:
    """Parameters that an optimizer trains: without running statistics."""
    total = 0
    for block in blocks:
        shapes = jax.eval_shape(block.init, KEY)
        for statistic, leaf in zip(jax.tree.leaves(block._is_statistic), jax.tree.leaves(shapes), strict=True):
            total += 0 if statistic else leaf.size
    return total


def conv(n_in, n_out, kernel=3, bias=True):
    return n_in * n_out * kernel**2 + bias * n_out


def linear(n_in, n_out):
    return n_in * n_out + n_out


def chained(channels):
    return itertools.pairwise([3, *channels])


VGG5_CHANNELS = [128, 256, 512, 512]
VGG8B_CHANNELS = [128, 256, 256, 512, 512, 512]
VGG11B_CHANNELS = [128, 128, 128, 256, 256, 512, 512, 512, 512]


def vggb(channels):
    """Convolutions without a bias and their normalisation, 2048 - 1024 with its own, the top."""
    return sum(conv(a, b, bias=False) + 2 * b for a, b in chained(channels)) + linear(2048, 1024) + 2048 + linear(1024, 10)


@pytest.mark.parametrize(
    ("model", "shapes", "parameters"),
    [
        (
            VGG5(),
            [(16, 16, 128), (8, 8, 256), (4, 4, 512), (2, 2, 512), (10,)],
            sum(conv(a, b) for a, b in chained(VGG5_CHANNELS)) + linear(2048, 10),
        ),
        (
            VGG8b(),
            [(32, 32, 128), (16, 16, 256), (16, 16, 256), (8, 8, 512), (4, 4, 512), (2, 2, 512), (1024,), (10,)],
            vggb(VGG8B_CHANNELS),
        ),
        (
            VGG11b(),
            [*[(32, 32, 128)] * 3, (16, 16, 256), (16, 16, 256), (8, 8, 512), (8, 8, 512), (4, 4, 512), (2, 2, 512), (1024,), (10,)],
            vggb(VGG11B_CHANNELS),
        ),
        (
            SoftHebb3(),
            [(16, 16, 96), (8, 8, 384), (4, 4, 1536), (10,)],
            conv(3, 96, 5, False) + conv(96, 384, bias=False) + conv(384, 1536, bias=False) + linear(24576, 10),
        ),
        # He et al. (2016) give 0.27 million; without biases of convolutions and weights of shortcuts it is this number.
        (ResNet20(), [*[(32, 32, 16)] * 4, *[(16, 16, 32)] * 3, *[(8, 8, 64)] * 3, (10,)], 269_722),
        # The well-known count of this network with projections at the three shortcuts where the shape changes.
        (ResNet18(), [*[(32, 32, 64)] * 3, *[(16, 16, 128)] * 2, *[(8, 8, 256)] * 2, *[(4, 4, 512)] * 2, (10,)], 11_173_962),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_published_networks(model, shapes, parameters):
    assert model.problems(CIFAR, 10) == []
    blocks = model.blocks(CIFAR, 10)
    assert [block.out_shape for block in blocks] == shapes
    assert [block.in_shape for block in blocks] == [CIFAR, *shapes[:-1]]
    assert [(block.index, block.count, block.classes) for block in blocks] == [(i, len(shapes), 10) for i in range(len(shapes))]
    assert count(blocks) == parameters


def test_the_counts_that_the_papers_round_to():
    assert [round(count(model.blocks(CIFAR, 10)) / 1e6, 1) for model in (VGG8b(), VGG11b())] == [8.9, 11.6]


def test_width_multiplies_channels():
    half, double = (VGG8b(width=w).blocks(CIFAR, 10) for w in (0.5, 2))
    assert [block.out_shape[-1] for block in half][:6] == [64, 128, 128, 256, 256, 256]
    assert [block.out_shape[-1] for block in double][:6] == [256, 512, 512, 1024, 1024, 1024]
    assert ResNet20(width=0.01).blocks(CIFAR, 10)[3].out_shape == (32, 32, 1)


@pytest.mark.parametrize("shape", [CIFAR, (28, 28, 1), (14, 14, 1)])
def test_a_convnet_takes_classes_and_sizes_from_the_data(shape):
    blocks = Convnet(channels=(4, 6), dense=(9,)).blocks(shape, 7)
    side = shape[0] // 4
    assert [block.out_shape for block in blocks] == [(shape[0] // 2,) * 2 + (4,), (side, side, 6), (9,), (7,)]
    assert count(blocks) == conv(shape[-1], 4) + conv(4, 6) + linear(side * side * 6, 9) + linear(9, 7)
    assert [block.activation for block in blocks] == ["relu", "relu", "relu", "identity"]
    x = jnp.asarray(RNG.normal(size=(2, *shape)), jnp.float32)
    for block in blocks:
        x = block.apply(block.init(KEY), x)
        assert x.shape == (2, *block.out_shape)


@pytest.mark.parametrize("shape", [(40,), (40, 2)])
def test_a_convnet_for_one_axis(shape):
    blocks = Convnet(channels=(4,), kernel=5).blocks(shape, 3)
    assert [block.out_shape for block in blocks] == [(20, 4), (3,)]
    params = blocks[0].init(KEY)
    x = jnp.asarray(RNG.normal(size=(2, *shape)), jnp.float32)
    padded = np.pad(x.reshape(2, 40, -1), [(0, 0), (2, 2), (0, 0)])
    u = np.stack([np.tensordot(padded[:, t : t + 5], params["conv"]["kernel"], 2) for t in range(40)], 1)
    expected = np.maximum(u, 0).reshape(2, 20, 2, 4).max(2)
    np.testing.assert_allclose(blocks[0].apply(params, x), expected, rtol=1e-4, atol=1e-5)


def by_hand(x, kernel, stride, pad):
    """A convolution of one image [height, width, channels] in loops, padded by `pad` zeros."""
    x = np.pad(x, [(pad, pad), (pad, pad), (0, 0)])
    k = kernel.shape[0]
    size = [(n - k) // stride + 1 for n in x.shape[:2]]
    out = np.zeros((*size, kernel.shape[-1]))
    for i, j in np.ndindex(*size):
        out[i, j] = np.tensordot(x[i * stride : i * stride + k, j * stride : j * stride + k], kernel, 3)
    return out


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, None), (3, 2, 1), (5, 1, 0), (1, 1, None)])
def test_pre_is_a_convolution(kernel, stride, padding):
    block = Convnet(channels=(3,), kernel=kernel, stride=stride, padding=padding, pool="none").blocks((6, 7, 2), 4)[0]
    params = block.init(KEY)
    params["conv"]["bias"] = jnp.arange(3.0)
    x = jnp.asarray(RNG.normal(size=(2, 6, 7, 2)), jnp.float32)
    pad = kernel // 2 if padding is None else padding
    expected = [by_hand(image, np.asarray(params["conv"]["kernel"]), stride, pad) + np.arange(3) for image in x]
    np.testing.assert_allclose(block.pre(params, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(block.apply(params, x), np.maximum(expected, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", [Pool("max"), Pool("average"), Pool("max", 4, 2, 1), Pool("average", 3, 2, 1), Pool("max", 3, 1)])
@pytest.mark.parametrize("side", [8, 7])
def test_pooling_is_that_of_lax(pool, side):
    x = jnp.asarray(RNG.normal(size=(2, side, 9, 3)) - 3, jnp.float32)  # so that zeros would win a maximum
    start, reduce = (-jnp.inf, lax.max) if pool.kind == "max" else (0.0, lax.add)
    pads = ((0, 0), (pool.padding,) * 2, (pool.padding,) * 2, (0, 0))

    def window(x):
        return lax.reduce_window(x, start, reduce, (1, pool.size, pool.size, 1), (1, pool.stride, pool.stride, 1), pads)

    scale = 1 if pool.kind == "max" else pool.size**2
    np.testing.assert_allclose(pooled(x, pool), window(x) / scale, rtol=1e-5, atol=1e-6)
    assert pooled(x, pool).shape[1:3] == (pool.length(side), pool.length(9))
    if pool.kind == "max":
        ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(f(x) ** 2))(x) for f in (lambda x: pooled(x, pool), window))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("pool", ["none", "max", "average"])
@pytest.mark.parametrize("first", [False, True])
def test_the_whole_is_pre_then_post_in_this_order(norm, pool, first):
    if first and pool == "none":
        return
    block = Convnet(channels=(3,), norm=norm, pool=pool, pool_first=first, activation="tanh").blocks((4, 4, 2), 2)[0]
    params = block.init(KEY)
    x = jnp.asarray(RNG.normal(size=(3, 4, 4, 2)), jnp.float32)
    u = block.pre(params, x)
    assert u.shape == (3, *((2, 2) if first else (4, 4)), 3)
    np.testing.assert_array_equal(block.apply(params, x), block.post(params, u))
    h = np.asarray(u, np.float64)
    if norm != "none":
        axes = (1, 2, 3) if norm == "layer" else (0, 1, 2)
        h = (h - h.mean(axes, keepdims=True)) / np.sqrt(h.var(axes, keepdims=True) + (1e-6 if norm == "layer" else 1e-5))
    h = np.tanh(h)
    if pool != "none" and not first:
        h = h.reshape(3, 2, 2, 2, 2, 3)
        h = h.max((2, 4)) if pool == "max" else h.mean((2, 4))
    np.testing.assert_allclose(block.post(params, u), h, rtol=1e-3, atol=1e-4)


def test_before_a_rising_activation_the_maximum_is_the_same():
    after, before = (VGG5(width=0.02, activation="hard_sigmoid", pool_first=first).blocks((16, 16, 1), 3) for first in (False, True))
    x = jnp.asarray(RNG.normal(size=(2, 16, 16, 1)), jnp.float32)
    params = after[0].init(KEY)
    np.testing.assert_allclose(after[0].apply(params, x), before[0].apply(params, x), rtol=1e-6)


def test_kernels_begin_with_the_variance_of_their_fan_in():
    kernel = np.asarray(Convnet(channels=(256,), gain=0.5).blocks((8, 8, 32), 2)[0].init(KEY)["conv"]["kernel"])
    assert kernel.std() == pytest.approx(0.5 * math.sqrt(2 / (9 * 32)), rel=0.02)
    kernel = np.asarray(SoftHebb3(width=0.5).blocks(CIFAR, 10)[1].init(KEY)["conv"]["kernel"])
    assert kernel.std() == pytest.approx(25 / math.sqrt(9 * 48), rel=0.02)


def test_softhebb_normalises_and_mirrors_its_input():
    block = SoftHebb3(width=0.05).blocks((8, 8, 3), 10)[1]
    params = block.init(KEY)
    assert set(params) == {"conv", "input_norm"}
    assert set(params["conv"]) == {"kernel"}
    assert set(params["input_norm"]) == {"mean", "var"}
    x = 3 + 2 * jnp.asarray(RNG.normal(size=(4, *block.in_shape)), jnp.float32)
    normal = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
    mirrored = np.pad(np.asarray(normal), [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    expected = [by_hand(image, np.asarray(params["conv"]["kernel"]), 1, 0) for image in mirrored]
    np.testing.assert_allclose(block.pre(params, x), expected, rtol=1e-3, atol=1e-2)


def test_triangle():
    """Two positions with means of 3 and 2."""
    u = jnp.array([[1.0, 2.0, 6.0], [4.0, 0.0, 2.0]])
    np.testing.assert_allclose(triangle(u, 0.7), [[0, 0, 3**0.7], [2**0.7, 0, 0]], rtol=1e-6)
    slope = jax.grad(lambda u: triangle(u, 0.7).sum())(u)
    own = np.array([[-1 / 3, -1 / 3, 2 / 3], [2 / 3, -1 / 3, -1 / 3]])
    np.testing.assert_allclose(slope, 0.7 * np.array([[3], [2]]) ** -0.3 * own, rtol=1e-5)


def zeroed(params, *names):
    return {**params, **{name: jax.tree.map(jnp.zeros_like, params[name]) for name in names}}


def test_a_residual_block_whose_branch_is_silent_is_its_shortcut():
    x = jnp.abs(jnp.asarray(RNG.normal(size=(2, 8, 8, 4)), jnp.float32))
    same, halved = ResNet20(width=0.25, norm="none").blocks((8, 8, 3), 5)[1:5:3]
    assert same.composite
    np.testing.assert_array_equal(same.apply(zeroed(same.init(KEY), "conv1", "conv2"), x), x)
    out = halved.apply(zeroed(halved.init(KEY), "conv2"), x)
    assert out.shape == (2, 4, 4, 8)
    np.testing.assert_array_equal(out[..., :4], x[:, ::2, ::2])
    np.testing.assert_array_equal(out[..., 4:], 0)


def test_a_projection_is_a_convolution_of_one_pixel():
    block = ResNet18(width=1 / 16, norm="none").blocks((8, 8, 3), 5)[3]
    params = zeroed(block.init(KEY), "conv2")
    x = jnp.asarray(RNG.normal(size=(2, 8, 8, 4)), jnp.float32)
    expected = np.maximum(np.einsum("bhwi,io->bhwo", x[:, ::2, ::2], params["project"]["kernel"][0, 0]), 0)
    np.testing.assert_allclose(block.apply(params, x), expected, rtol=1e-4, atol=1e-5)


def test_a_residual_network_ends_with_the_mean_over_positions():
    top = ResNet20(width=0.25).blocks((8, 8, 3), 5)[-1]
    params = top.init(KEY)
    x = jnp.asarray(RNG.normal(size=(3, *top.in_shape)), jnp.float32)
    np.testing.assert_allclose(top.apply(params, x), x.mean((1, 2)) @ params["linear"]["kernel"], rtol=1e-4, atol=1e-5)
    assert top.activation == "identity"


@pytest.fixture(scope="module")
def text():
    """A small transformer of 7 characters, its parameters, and three examples of 6."""
    blocks = Transformer(width=8, layers=2, heads=2).blocks((6,), 7)
    params = [block.init(jax.random.fold_in(KEY, block.index)) for block in blocks]
    return blocks, params, jnp.asarray(RNG.integers(0, 7, (3, 6)), jnp.int32)


def outputs(blocks, params, x):
    found = []
    for block, own in zip(blocks, params, strict=True):
        x = block.apply(own, x)
        found.append(x)
    return found


def test_a_transformer_has_these_shapes_and_parameters(text):
    blocks, _, _ = text
    assert [block.out_shape for block in blocks] == [(6, 8), (6, 8), (6, 8), (7,)]
    assert [block.in_dtype for block in blocks] == [jnp.int32, *[jnp.float32] * 3]
    attention = 2 * 16 + 8 * 24 + linear(8, 8) + linear(8, 32) + linear(32, 8)
    assert count(blocks) == 7 * 8 + 6 * 8 + 2 * attention + 16 + linear(8, 7)


def test_no_position_depends_on_later_ones(text):
    blocks, params, x = text
    before = outputs(blocks, params, x)
    for t in range(6):
        after = outputs(blocks, params, x.at[:, t].add(1) % 7)
        for a, b in zip(before[:-1], after[:-1], strict=True):
            np.testing.assert_array_equal(a[:, :t], b[:, :t])
            assert np.all(np.any(a[:, t] != b[:, t], axis=-1))
        assert np.all(np.any(before[-1] != after[-1], axis=-1)), "the scores depend on every position"


def test_attention_by_hand(text):
    blocks, params, _ = text
    p = params[1]
    h = np.asarray(RNG.normal(size=(1, 6, 8)), np.float32)

    def normal(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def lin(name, x):
        return x @ np.asarray(p[name]["kernel"]) + np.asarray(p[name]["bias"])

    q, k, v = np.split(normal(h[0]) @ np.asarray(p["qkv"]["kernel"]), 3, axis=1)
    mixed = np.zeros((6, 8))
    for head, t in itertools.product(range(2), range(6)):
        own = slice(4 * head, 4 * head + 4)
        weights = np.exp([q[t, own] @ k[s, own] / 2 for s in range(t + 1)])
        mixed[t, own] = sum(w * v[s, own] for s, w in enumerate(weights / weights.sum()))
    after = h[0] + lin("out", mixed)
    after = after + lin("down", np.asarray(jax.nn.gelu(lin("up", normal(after)))))
    np.testing.assert_allclose(blocks[1].apply(p, h)[0], after, rtol=1e-3, atol=1e-4)


def test_a_block_of_tokens_takes_integers(text):
    blocks, params, x = text
    assert blocks[0].examples(1).dtype == jnp.int32
    expected = np.asarray(params[0]["tokens"]["embedding"])[np.asarray(x)] + np.asarray(params[0]["positions"]["embedding"])
    np.testing.assert_array_equal(blocks[0].apply(params[0], x), expected)


def test_presets_of_widths():
    config = {"rule": {"name": "backprop"}, "data": {"name": "mnist"}, "train": {"steps": 1}}
    model = resolve({**config, "model": {"name": "mlp", "widths": "mlp-pcx", "shards": 1}}).model
    assert model == MLP((784, 128, 128, 128, 10))
    assert all(not MLP(widths).problems((28, 28, 1), 10) for widths in PRESETS.values())


DATA = {"images": "fashion14", "line": "strokes1d"}


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"name": "mlp", "widths": "mlp-x"}, "images", "model.widths: `mlp-x`: is neither a list of widths nor the name of one (mlp-s, "),
        ({"name": "mlp", "widths": "mlp-s"}, "images", "model.widths: `mlp-s`: begins with 784, but an example has 196 values"),
        (
            {"name": "mlp", "widths": [196, 10], "norm": "group"},
            "images",
            "model.norm: `group`: input should be 'none', 'layer' or 'batch'",
        ),
        ({"name": "convnet"}, "images", "model.channels: is missing"),
        ({"name": "convnet", "channels": []}, "images", "model.channels: `[]`: needs at least one, such as [32, 64, 128]"),
        (
            {"name": "convnet", "channels": [4, 4, 4, 4]},
            "images",
            "model.channels: `[4, 4, 4, 4]`: makes the example too small: block 3 leaves nothing of [1, 1, 4]",
        ),
        ({"name": "convnet", "channels": [4], "kernel": 4}, "images", "model.kernel: `4`: is even: give `padding`"),
        ({"name": "convnet", "channels": [4], "padding": -1}, "images", "model.padding: `-1`: must not be negative"),
        (
            {"name": "convnet", "channels": [4], "pool": "none", "pool_first": True},
            "images",
            "model.pool_first: `true`: has no effect without a `pool`",
        ),
        ({"name": "convnet", "chanels": [4]}, "images", "model.chanels: unknown key; did you mean `channels`?"),
        ({"name": "vgg5"}, "images", "model: makes the example too small: block 3 leaves nothing of [1, 1, 512]"),
        ({"name": "vgg6"}, "images", "model.name: `vgg6` is no model; did you mean `vgg5`?"),
        ({"name": "resnet20"}, "line", "model: takes images [height, width, channels]; an example has shape [40]"),
        ({"name": "resnet20", "width": 0}, "images", "model.width: `0`: input should be greater than 0"),
        ({"name": "transformer", "heads": 3}, "line", "model.heads: `3`: does not divide the width of 64"),
        ({"name": "transformer"}, "images", "model: takes text, [context] characters; an example has shape [14, 14, 1]"),
        ({"name": "transformer"}, "line", "model.name: `transformer`: takes text, but this data is none"),
    ],
    ids=lambda value: str(value.get("name")) if isinstance(value, dict) else "",
)
def test_every_mistake_is_one_clear_line(model, data, message):
    config = {"rule": {"name": "backprop"}, "model": {**model, "shards": 1}, "data": {"name": DATA[data]}, "train": {"steps": 1}}
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    lines = [str(problem).removeprefix(": ") for problem in caught.value.problems]
    assert any(line.startswith(message) for line in lines), lines
    assert len(lines) <= 2
    assert all("\n" not in line for line in lines)


def test_batch_normalisation_and_microbatches_is_one_clear_line():
    config = {"rule": {"name": "backprop"}, "data": {"name": "fashion14"}, "train": {"steps": 1, "microbatches": 2}}
    with pytest.raises(ConfigError, match=r"train\.microbatches: `2`: batch normalisation is about the whole batch"):
        resolve({**config, "model": {"name": "resnet20", "shards": 2}})


def test_models_are_told_apart_by_their_fields():
    assert all(cls.name == name for name, cls in MODELS.items())
    assert isinstance(Convnet(channels=(4,)).blocks((8, 8, 1), 2)[0].module, Conv)
    assert isinstance(Convnet(channels=(4,)).blocks((8, 8, 1), 2)[1].module, Dense)
    assert Layer(4, pool=Pool("max")).shape((8, 8, 1)) == (4, 4, 4)


def coded(**options):
    blocks = CodeMLP(**{"code": 5, "first": (7,), "hidden": (8, 6), "depth": 3, **options}).blocks((4, 4), 3)
    return blocks, [block.init(jax.random.key(i)) for i, block in enumerate(blocks)]


def silenced(params):
    return jax.tree.map(jnp.zeros_like, params)


def test_a_code_is_narrow_and_bounded_and_the_top_is_neither():
    blocks, params = coded()
    x = 100 * np.random.default_rng(0).normal(size=(9, 4, 4)).astype(np.float32)
    for block, own in zip(blocks, params, strict=True):
        assert x.shape[1:] == block.in_shape
        x = block.apply(own, x)
        assert block.top or (np.abs(x) <= 1).all()
    assert x.shape == (9, 3)
    assert np.abs(x).max() > 1


def test_with_skips_a_silent_block_passes_on_what_it_was_told():
    code = np.random.default_rng(0).uniform(-1, 1, (9, 5)).astype(np.float32)
    for skips in (True, False):
        blocks, params = coded(skips=skips)
        told = blocks[1].apply(silenced(params[1]), code)
        np.testing.assert_array_equal(told, code if skips else np.zeros_like(code))
        scores = blocks[2].apply({**params[2], "out": silenced(params[2]["out"])}, code)
        expected = code @ params[2]["shortcut"]["kernel"] if skips else np.zeros((9, 3))
        np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(20,), (8, 12, 2)])
def test_a_code_at_each_position(shape):
    model = CodeConvnet(channels=(6, 7), code=3, layers=2, kernel=3)
    lower, top = model.blocks(shape, 5)
    params = [block.init(jax.random.key(i)) for i, block in enumerate((lower, top))]
    half = tuple(n // 2 for n in shape[:2])
    n_in, taps = (shape[2], 9) if len(shape) == 3 else (1, 3)
    assert lower.out_shape == top.in_shape == (*half, 3)
    assert count([lower]) == taps * n_in * 6 + 6 + taps * 36 + 6 + linear(6, 3)
    assert count([top]) == taps * 21 + 7 + taps * 49 + 7 + linear(math.prod(n // 2 for n in half) * 7, 5)
    x = 30 * RNG.normal(size=(4, *shape)).astype(np.float32)
    code = lower.apply(params[0], x)
    assert np.abs(code).max() == 1
    assert top.apply(params[1], code).shape == (4, 5)
    # Where the input is silent and the biases are zero, so is the code; one value is seen within two kernels, and not beyond.
    one = np.zeros((1, *shape), np.float32)
    one[(0, *(0,) * len(shape))] = 1
    seen = np.abs(lower.apply(params[0], one)).max((0, -1))
    assert seen[(0,) * seen.ndim] > 0
    assert not seen[2:].any()


def test_codes_of_patches():
    """Each code depends on its own two positions, and on no others."""
    lower, top = CodeConvnet(channels=(6, 7), code=3, patches=True).blocks((8, 5), 4)
    params = [block.init(jax.random.key(i)) for i, block in enumerate((lower, top))]
    assert (lower.out_shape, top.in_shape) == ((4, 3), (4, 3))
    assert count([lower]) == 2 * 5 * 6 + 6 + linear(6, 6) + linear(6, 3)
    assert count([top]) == 2 * 3 * 7 + 7 + linear(7, 7) + linear(2 * 7, 4)
    x = RNG.normal(size=(2, 8, 5)).astype(np.float32)
    code = lower.apply(params[0], x)
    x[:, 2:4] = RNG.normal(size=(2, 2, 5))
    moved = np.abs(lower.apply(params[0], x) - code).max((0, -1)) > 0
    assert moved.tolist() == [False, True, False, False]
    assert top.apply(params[1], code).shape == (2, 4)
    assert CodeConvnet(patches=True).blocks((8, 8, 1), 4)[0].out_shape == (4, 4, 20)


@pytest.mark.parametrize(
    ("options", "shape", "sentence"),
    [({"channels": (8,)}, (40,), "at least two"), ({"kernel": 4}, (40,), "odd"), ({"channels": (8,) * 5}, (16,), "too small")],
)
def test_networks_of_codes_that_cannot_be(options, shape, sentence):
    assert sentence in CodeConvnet(**options).problems(shape, 10)[0][1]
