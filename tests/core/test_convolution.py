"""A convolution as a product with patches is XLA's, and so are its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.convolution import convolve

CASES = {
    "one axis": ((3, 11, 2), (5, 2, 4), (1,), "SAME"),
    "one axis, strided": ((3, 12, 2), (3, 2, 4), (2,), ((1, 1),)),
    "images": ((2, 8, 8, 3), (3, 3, 3, 5), (1, 1), "SAME"),
    "even kernel, strided, valid": ((2, 9, 7, 3), (2, 4, 3, 5), (2, 3), "VALID"),
    "uneven padding": ((2, 6, 5, 3), (3, 3, 3, 2), (2, 1), ((0, 1), (2, 1))),
    "points": ((2, 6, 6, 3), (1, 1, 3, 2), (2, 2), "VALID"),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives_are_those_of_xla(case):
    shape, size, strides, padding = CASES[case]
    rng = np.random.default_rng(0)
    space = "DHW"[-len(strides) :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    with jax.enable_x64(True):
        x, w, dx, dw = (jnp.asarray(rng.normal(size=s)) for s in (shape, size, shape, size))
        theirs = lambda x, w: jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers)  # noqa: E731
        ours = lambda x, w: convolve(x, w, strides, padding)  # noqa: E731
        (y, dy), (z, dz) = jax.jvp(theirs, (x, w), (dx, dw)), jax.jvp(ours, (x, w), (dx, dw))
        np.testing.assert_allclose(z, y, atol=1e-12)
        np.testing.assert_allclose(dz, dy, atol=1e-12)
        for mine, other in zip(jax.vjp(ours, x, w)[1](y), jax.vjp(theirs, x, w)[1](y), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-12)
