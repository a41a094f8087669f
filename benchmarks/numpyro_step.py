"""The training step of `fit_step.py` in NumPyro, for an interpreter that has it.

`fit_step.py --numpyro PYTHON` starts this and asks for each round by a line; the answer is how many
seconds it took. A round is one jitted scan over its minibatches, by NumPyro's `SVI.update`.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from typing import Any

LEARNING_RATE = float(sys.argv[1])
BATCH, STEPS, LATENT, PIXELS, *HIDDEN = map(int, sys.argv[2:])

try:
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp
    from numpyro.infer import SVI, TraceMeanField_ELBO
except ImportError as error:
    sys.exit(f"{error}")


def network(name: str, x: Any, *sizes: int) -> Any:
    """Linear layers with SiLU between them, initialised as torch does."""
    layers = list(pairwise(sizes))
    for i, (inputs, outputs) in enumerate(layers):
        bound = inputs**-0.5

        def initial(key: Any, shape: tuple[int, ...], bound: float = bound) -> Any:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        weight = numpyro.param(f"{name}{i}.weight", lambda k, s=(inputs, outputs): initial(k, s))
        bias = numpyro.param(f"{name}{i}.bias", lambda k, s=(outputs,): initial(k, s))
        x = x @ weight + bias
        x = jax.nn.silu(x) if i + 1 < len(layers) else x
    return x


def model(x: Any) -> None:
    """Bernoulli pixels, given a standard normal latent."""
    with numpyro.plate("data", len(x)):
        units = jnp.zeros((len(x), LATENT))
        z = numpyro.sample("z", dist.Normal(units, 1.0).to_event(1))
        logits = network("decoder", z, LATENT, *HIDDEN, PIXELS)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x: Any) -> None:
    """A diagonal normal for each row."""
    with numpyro.plate("data", len(x)):
        out = network("encoder", x, PIXELS, *HIDDEN, 2 * LATENT)
        mean, raw = jnp.split(out, 2, -1)
        numpyro.sample("z", dist.Normal(mean, jax.nn.softplus(raw)).to_event(1))


def main() -> None:
    """Compile, say so, and run a round for each line that comes."""
    x = jax.random.bernoulli(jax.random.PRNGKey(0), 0.5, (BATCH * STEPS, PIXELS)).astype("float32")
    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), TraceMeanField_ELBO())

    @jax.jit
    def epoch(state: Any, key: Any) -> Any:
        order = jax.random.permutation(key, BATCH * STEPS).reshape(STEPS, BATCH)
        return jax.lax.scan(lambda state, rows: svi.update(state, x[rows]), state, order)

    state = svi.init(jax.random.PRNGKey(1), x[:BATCH])
    state, losses = epoch(state, jax.random.PRNGKey(2))
    losses.block_until_ready()
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin, 3):
        start = time.perf_counter()
        state, losses = epoch(state, jax.random.PRNGKey(number))
        losses.block_until_ready()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
