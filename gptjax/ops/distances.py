"""Products of queries with a key for every distance, brought to the pairs that they belong to.

Transformer-XL's term of a score (arXiv 1901.02860, section 3.3). A strip of queries is multiplied
with the distances that it can meet; turned so that distances fall, the rows of the product are
those of the scores, each begun one place earlier than the row before. As in the source's appendix B
that shift is a reshape; its transpose, for the gradient, is one again, with zeros around it.
Queries at places of their own begin their rows anywhere: a gather, whose transpose is a gather too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Strip = tuple[int, int, int, int]  # queries [start, stop), keys [first, last)


class Distances(NamedTuple):
    """What scores of the queries q get: (q + bias) . keys[column of the distance].

    keys_LHK: distances fall from column to column; bias_HK: of the queries. begins_BT: the column
    of key 0 for every query; None where it is T - 1 for query 0 and one less for each next one.
    There may be no columns for keys behind the last that a query reads but one: what pairs with
    those get is arbitrary then.
    """

    keys_LHK: jax.Array
    bias_HK: jax.Array
    begins_BT: jax.Array | None = None

    def columns(self, strip: Strip, count: int) -> tuple[int, int]:
        """The first column that a strip of a row of `count` queries meets, and how many."""
        start, stop, first, last = strip
        if self.begins_BT is not None:
            return 0, self.keys_LHK.shape[0]
        column = count - stop + first
        return column, min(stop - start + last - first - 1, self.keys_LHK.shape[0] - column)


def at_keys(product_HBCW, begins_BC, keys: int):
    """[H, B, C, keys]: columns of distances as columns of keys; begins as in `Distances`."""
    *lead, rows, columns = product_HBCW.shape
    if begins_BC is not None:
        return _windows(product_HBCW, begins_BC, keys)
    if rows == 1:
        return product_HBCW[..., :keys]
    # Row i begins at column rows - 1 - i: a place earlier in each row of one column less.
    flat = product_HBCW.reshape(*lead, rows * columns)
    flat = flat[..., rows - 1 : rows - 1 + rows * (columns - 1)]
    return flat.reshape(*lead, rows, columns - 1)[..., :keys]


def at_columns(scores_HBCS, begins_BC, columns: int):
    """The transpose of `at_keys`: [H, B, C, columns], zeros where there is no key."""
    *lead, rows, keys = scores_HBCS.shape
    none = [(0, 0)] * len(lead)
    if begins_BC is not None:
        wide = [*none, (0, 0), (columns - keys,) * 2]
        return _windows(jnp.pad(scores_HBCS, wide), columns - keys - begins_BC, columns)
    if rows == 1:
        return jnp.pad(scores_HBCS, [*none, (0, 0), (0, columns - keys)])
    wide = jnp.pad(scores_HBCS, [*none, (0, 0), (0, columns - 1 - keys)])
    flat = jnp.pad(wide.reshape(*lead, rows * (columns - 1)), [*none, (rows - 1, 1)])
    return flat.reshape(*lead, rows, columns)


def _windows(x_HBCW, begins_BC, size: int):
    """So many columns of every row, from its own on."""
    cut = lambda row, begin: jax.lax.dynamic_slice(row, (begin,), (size,))
    rows = jax.vmap(jax.vmap(cut))
    return jax.vmap(rows, (0, None))(x_HBCW, begins_BC)
