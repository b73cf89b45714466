"""The state of a run on the mesh: one pytree that is stepped, saved and restored."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.models.build import init_params, param_axes
from gptjax.parallel import DEFAULT_RULES, Rules


class TrainState(NamedTuple):
    """`step` counts finished updates; `rng` is the key that dropout keys are folded from."""

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array


def abstract_params(config):
    """Shapes and dtypes of the parameters, without a mesh."""
    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))


def param_specs(config, mesh, rules: Rules = DEFAULT_RULES):
    """The stored layout of every parameter on this mesh (which may be abstract)."""
    return jax.tree.map(
        lambda leaf, names: rules.spec(names, leaf.shape, mesh),
        abstract_params(config),
        param_axes(config),
    )


def init_state(config, optimizer: optax.GradientTransformation, seed: int, mesh) -> TrainState:
    """A fresh state on the mesh. Values depend on the seed alone, not on the mesh."""
    params, step, rng = _init_program(config, mesh)(np.uint32(seed))
    with jax.set_mesh(mesh):
        opt_state = jax.jit(optimizer.init)(params)
    return TrainState(step, params, opt_state, rng)


@functools.lru_cache(maxsize=32)
def _init_program(config, mesh):
    """One compiled program for all seeds of a shape."""
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), param_specs(config, mesh))
    whole = NamedSharding(mesh, P())

    # The initialisers know nothing of meshes; the compiler splits their work by the outputs.
    def init(seed):
        keys = jax.random.split(jax.random.key(seed))
        return init_params(config, keys[0]), jnp.zeros((), jnp.int32), keys[1]

    return jax.jit(init, out_shardings=(shardings, whole, whole))


def abstract_like(state: TrainState):
    """Shapes, dtypes and layouts of a state, for restoring into."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
