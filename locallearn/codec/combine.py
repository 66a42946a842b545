"""Codecs around other codecs: what is lost is sent later, only some messages are sent, or they arrive later."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from locallearn.codec.base import Codec, Context, Packet, Spec, floats_only, spec_of
from locallearn.codec.wires import TRIMMED
from locallearn.fields import Count, NonNegativeInt


def error_feedback(inner: Codec) -> Codec:
    """What the codec after it loses is added to the next message of the same channel.

    Suits gradients and weights, not activations, of which the next message has other examples. Size: that of the codec after it. What
    arrived in all differs from what was sent in all by no more than one message's loss, where the codec after it bounds that.

    Seide et al. (2014), "1-bit stochastic gradient descent"; Karimireddy et al. (2019), arXiv:1901.09847.
    """

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        sender, receiver = inner.init(spec, key)
        return (jnp.zeros(spec.shape, spec.dtype), sender, receiver), receiver

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        residual, outbox, mirror = sender
        if not context.training:
            return inner.encode(x, outbox, context)[0], sender
        packet, outbox = inner.encode(x + residual, outbox, context)
        arrives, mirror = inner.decode(packet, mirror, spec_of(x), context)
        lost = x + residual - jax.lax.optimization_barrier(arrives)  # so that it is what the receiver will have
        return packet, (jnp.where(jnp.isfinite(lost), lost, 0), outbox, mirror)

    return floats_only(Codec(init, encode, inner.decode, inner.wire))


def every(inner: Codec, k: Count = 2) -> Codec:
    """Only each k-th message of the channel crosses, the first among them; for the others the last one arrives again.

    Suits weights, feedback, targets that change slowly; not activations, of which the next message has other examples. Size: that of the
    codec after it, or nothing, not even a frame. No bound but how much the messages change.
    """

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        sender, receiver = inner.init(spec, key)
        turn = jnp.zeros((), jnp.int32)
        return (turn, sender), (turn, receiver, jnp.zeros(spec.shape, spec.dtype))

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        turn, outbox = sender
        packet, used = inner.encode(x, outbox, context)
        if not context.training:
            return packet, sender
        now = turn == 0
        return _chosen(now, packet, jax.tree.map(jnp.zeros_like, packet)), ((turn + 1) % k, _chosen(now, used, outbox))

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        turn, inbox, last = receiver
        value, used = inner.decode(packet, inbox, spec, context)
        if not context.training:
            return value, receiver
        value = jnp.where(turn == 0, value, last)
        return value, ((turn + 1) % k, _chosen(turn == 0, used, inbox), value)

    return floats_only(Codec(init, encode, decode, (inner.wire or TRIMMED) if k > 1 else inner.wire, lambda turn, context: turn != 0))


def delayed(inner: Codec, k: NonNegativeInt = 1) -> Codec:
    """Each message arrives k messages later; zeros before that. Evaluations have no delay.

    Suits a look at what staleness costs: weights and feedback bear it; a delayed activation or error pairs one batch with another's labels.
    Size: that of the codec after it.
    """

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        sender, receiver = inner.init(spec, key)
        return sender, (receiver, jnp.zeros((k, *spec.shape), spec.dtype), jnp.zeros((), jnp.int32))

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        inbox, waiting, turn = receiver
        value, used = inner.decode(packet, inbox, spec, context)
        if not context.training:
            return value, receiver
        return waiting[turn], (used, waiting.at[turn].set(value), (turn + 1) % k)

    return floats_only(Codec(init, inner.encode, decode, inner.wire)) if k else inner


def _chosen(first: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)
