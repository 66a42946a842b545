"""Whether seeds of one configuration train faster as one vectorised program (`vmap`) than one after the other.

    python -m tests.benchmarks.bench_vmap [SEEDS]

The aim for building it: 1.3 times as fast. Processor time of all threads is also what runs in several processes would take together.
"""

import functools
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.runtime.fused import FusedSession, Orders, _steps
from tests.benchmarks.common import in_turns, random_setup, took

CASES = {
    "40-64-64-10, batch 50": ((40, 64, 64, 10), 50, 400),
    "196-128-64-64-10, batch 50": ((196, 128, 64, 64, 10), 50, 200),
    "784-512-512-10, batch 128": ((784, 512, 512, 10), 128, 20),
}
RULES = ("backprop", "mono_forward", "predictive_coding")
ROUNDS = 5


def seeds_of(rule, widths, batch, steps, count):
    """(the loop of a step, what one seed's call of it takes) for each seed; data is shared."""
    setup = random_setup(rule, widths, examples=2000, batch=batch, steps=steps)
    stage, calls = setup.stages[0], []
    for seed in range(count):
        session = FusedSession(replace(setup, seed=seed), {0: None})  # no program: only its state
        session.setup, session.stage = replace(setup, seed=seed), stage
        session._begin(None)
        calls.append((session._carry, session._orders(0, steps)))
    loop = functools.partial(_steps, stage, intake=setup.intake)
    return loop, calls, (jnp.asarray(setup.split.train.x), jnp.asarray(setup.split.train.y))


def main(count: int = 5) -> None:
    """Print, for each network and rule, the time of separate programs as a ratio to that of one for all seeds."""
    print(f"{count} seeds{'':28}separately, to together: processor  clock  furthest apart")
    for name, (widths, batch, steps) in CASES.items():
        for rule in RULES:
            loop, calls, data = seeds_of(rule, widths, batch, steps, count)
            single = jax.jit(loop).lower(calls[0][0], *data, calls[0][1]).compile()
            carry, every = jax.tree.map(lambda *leaves: jnp.stack(leaves), *calls)
            orders = calls[0][1]._replace(index=every.index, keys=every.keys)
            axes = (0, None, None, Orders(0, 0, None, None, None, None))
            vectorised = jax.jit(jax.vmap(loop, in_axes=axes)).lower(carry, *data, orders).compile()
            alone = lambda: [jax.block_until_ready(single(c, *data, own)) for c, own in calls]  # noqa: B023, E731
            together = lambda: jax.block_until_ready(vectorised(carry, *data, orders))  # noqa: B023, E731
            apart = max(
                float(np.abs(np.asarray(one, np.float64) - np.asarray(all_[s], np.float64)).max())
                for s, own in enumerate(alone())
                for one, all_ in zip(jax.tree.leaves(own[0][0]), jax.tree.leaves(together()[0][0]), strict=True)
                if one.dtype == np.float32
            )
            found = in_turns({"alone": lambda: took(alone), "together": lambda: took(together)}, ROUNDS)  # noqa: B023
            one, all_ = found["alone"], found["together"]
            ratio = f"{one.processor / all_.processor:9.2f}{one.clock / all_.clock:7.2f}{apart:12.1e}"
            print(f"{name:28}{rule:20}{1e3 * one.processor / steps / count:8.3f} ms a step{ratio}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
