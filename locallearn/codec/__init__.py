"""Codecs: how an array crosses a channel. What `encode` returns is what is sent, and its size is what is counted.

A codec is three pure functions in the manner of an optax transformation, with memory at both ends:

    init(spec, key)                        -> (sender, receiver)
    encode(x, sender, context)             -> (packet, sender)         packet: a tuple of arrays of fixed shape
    decode(packet, receiver, spec, context) -> (x, receiver)

and where frames vary in size a `Wire`, which says how a packet's bytes become a frame's: the packet is the bound that a plan has, the frame
is what is counted. Arrays that are not floating point (labels, flags) and empty ones cross as they are, whatever the codec, but for
`packed` and `deflate`, which lose nothing.

Each file is a family. A docstring says what a codec is, what it suits, its size and its error bound; n is the width of a row (the last
axis) unless it says otherwise.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from locallearn.codec.base import (
    Codec,
    Context,
    Packet,
    Spec,
    Wire,
    blank,
    exact,
    floats_only,
    is_float,
    is_silent,
    nbytes,
    packet_spec,
    spec_of,
)
from locallearn.codec.combine import delayed, error_feedback, every
from locallearn.codec.difference import difference
from locallearn.codec.integers import packed
from locallearn.codec.project import low_rank, random_projection
from locallearn.codec.quantise import bfloat16, binary, float8, float16, int2, int4, int8, sign, ternary
from locallearn.codec.reuse import reuse
from locallearn.codec.sparse import randomk, topk
from locallearn.codec.vector import vq
from locallearn.codec.wires import deflate

__all__ = [
    "CODECS",
    "COMBINATORS",
    "Codec",
    "CodecSpec",
    "Context",
    "Packet",
    "Spec",
    "Wire",
    "blank",
    "build",
    "exact",
    "floats_only",
    "is_float",
    "is_silent",
    "nbytes",
    "packet_spec",
    "spec_of",
]

CODECS: dict[str, Callable[..., Codec]] = {
    "exact": exact,
    "bfloat16": bfloat16,
    "float16": float16,
    "float8": float8,
    "int8": int8,
    "int4": int4,
    "int2": int2,
    "ternary": ternary,
    "sign": sign,
    "binary": binary,
    "packed": packed,
    "vq": vq,
    "topk": topk,
    "randomk": randomk,
    "random_projection": random_projection,
    "low_rank": low_rank,
    "difference": difference,
    "error_feedback": error_feedback,
    "every": every,
    "reuse": reuse,
    "delayed": delayed,
    "deflate": deflate,
}
"""Every codec by its YAML name. One whose first parameter is `inner` wraps the codec that follows it in a list."""

COMBINATORS = frozenset(name for name, make in CODECS.items() if next(iter(inspect.signature(make).parameters), None) == "inner")
"""The codecs that wrap another."""

CodecSpec = Sequence[tuple[str, tuple[Any, ...]]]


@functools.cache
def build(spec: tuple[tuple[str, tuple[Any, ...]], ...]) -> Codec:
    """A codec from ((name, arguments), ...), outermost first: (("error_feedback", ()), ("int8", ())).

    The same spec gives the same object, so that programs compiled for it are found again. ValueError for what cannot be put together.
    """
    (name, args), *rest = spec
    if name in COMBINATORS:
        return CODECS[name](build(tuple(rest)) if rest else exact(), *args)
    if rest:
        raise ValueError(f"`{name}` wraps nothing, so it must stand last in a list of codecs")
    return CODECS[name](*args)
