"""Array functions under the models: attention kernels, fused vocabulary loss, norms, rotary.

Arrays carry their shape as a suffix. The letters, once for the whole project:

    B batch            T query length     S key length      D model width
    H query heads      G key/value heads  K head size       F feed-forward width
    V vocabulary       N layers           E experts

`G` divides `H`: query head `h` reads key/value head `h // (H // G)`. Einsums use the same letters
in lower case. Two more appear inside these modules only: R = H // G, and C, a chunk of tokens;
of experts J, the choices of a token.

Every function runs without a mesh and under `jax.set_mesh` with explicit axes, where it keeps the
sharding of its first argument.
"""
