"""Codecs as they are written in a configuration: read, written again in one way, and refused at their line."""

import re

import pytest

from locallearn.codec import build
from locallearn.config.run import resolve
from locallearn.errors import ConfigError


def resolved(codecs, rule="mono_forward"):
    return resolve(
        {
            "rule": {"name": rule},
            "model": {"name": "mlp", "widths": [196, 12, 11, 10], "shards": 3},
            "data": {"name": "fashion14"},
            "train": {"steps": 3, "batch": 16},
            "codecs": codecs,
        }
    )


@pytest.mark.parametrize(
    ("written", "again"),
    [
        ("int8", "int8"),
        ("int4(nearest, symmetric, row)", "int4"),
        ("int4(levels=minmax)", "int4(nearest, minmax)"),
        ("difference(none, 300)", "difference(none, 300)"),
        ("difference(0)", "difference(0.0)"),
        ("vq(4)", "vq(4)"),
        (["deflate", "difference(0.01)", "int4(stochastic)"], ["deflate", "difference(0.01)", "int4(stochastic)"]),
    ],
)
def test_each_codec_is_spelled_in_one_way(written, again):
    config = resolved({"default": written})
    assert config.canonical()["codecs"]["default"] == again
    assert resolve(config.canonical()) == config
    assert build(config.codecs["default"])


@pytest.mark.parametrize(
    ("codecs", "says"),
    [
        ({"activation": ["difference(0.1)", "sign(message)"]}, "treats each row by itself"),
        ({"activation": "int4(sometimes)"}, "rounding: input should be 'nearest' or 'stochastic'"),
        ({"activation": "vq(3)"}, "bits: input should be 2, 4 or 8"),
        ({"activation": "deflate(10)"}, "level: input should be less than or equal to 9"),
        ({"label": "packed(5)"}, "holds 5 values, but the data has 10 classes: write packed(10)"),
        ({"default": ["deflate", "packed(5)"]}, "holds 5 values"),
        ({"activation": ["int8", "deflate"]}, "wraps no other codec, so it must stand last"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(codecs, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        resolved(codecs)


def test_labels_that_fit_may_be_packed():
    assert resolved({"label": "packed(10)", "default": "packed(5)"}, "backprop").codecs["label"] == (("packed", ()),)
