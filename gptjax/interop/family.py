"""A family of checkpoints: its config in both directions, and one table of names.

The table says of every parameter where it stands in their tensors, so that it serves reading and
writing. Rows of parameters that a model does not have (biases, a head that is tied) are left out.
"""

import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from gptjax.errors import BadInput, did_you_mean, nearest
from gptjax.interop.fields import Fields
from gptjax.interop.layouts import Leaf, Piece, axes_of
from gptjax.interop.stores import Store
from gptjax.models.config import TransformerConfig
from gptjax.training.state import abstract_params

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Row:
    """A parameter of ours and the tensor that holds it.

    ours: its path, `layer/...` for those of every layer, of two stacks behind `encoder/` and
    `decoder/`; theirs: a name with {i} for the layer and {e} for the expert; layout: as in
    `layouts`, empty where the axes are the same; part: which of the arrays that are merged along
    the layout's axis `c`; when: of which models, where another row is of the others.
    """

    ours: str
    theirs: str
    layout: str = ""
    part: int = 0
    when: Callable[[TransformerConfig], bool] | None = None


@dataclass(frozen=True)
class Family:
    """Checkpoints with the same names.

    architecture: what reads them, unless `write` says it; kinds: of the models; read: their config
    as ours; write: ours as theirs, which need not be able to say all of it; told: what reading the
    config needs of the tensors' shapes, and of whether two of them begin alike; body: how the names
    begin that stand alone in files of a model without a head; ignored: patterns of tensors that no
    parameter is made of; alias: a second name for the tied matrix; copies: further names of
    parameters, with their paths; older: parts of names, and what once stood in their place; zeros:
    tensors without an effect that exported files have to hold, with their shapes; start: the role
    of the token that a decoder behind an encoder begins with; around: what stands around a text, as
    `data.tokenizers.export` has it.
    """

    name: str
    architecture: str
    read: Callable[[Fields], TransformerConfig]
    write: Callable[[Any], dict[str, Any]]
    rows: tuple[Row, ...]
    body: str = ""
    ignored: tuple[str, ...] = ()
    alias: str = ""
    zeros: Callable[[Any], Mapping[str, tuple[int, ...]]] | None = None
    kinds: tuple[str, ...] = ("decoder",)
    told: Callable[[Shapes, Callable[[str, str], bool]], dict[str, Any]] | None = None
    copies: tuple[tuple[str, str], ...] = ()
    older: tuple[tuple[str, str], ...] = ()
    start: str = ""
    around: str = ""

    def leaves(self, config: TransformerConfig) -> dict[str, Leaf]:
        """Every parameter of a model with what it is made of; BadInput for one without a row."""
        table = {row.ours: row for row in self.rows if row.when is None or row.when(config)}
        return {path: _leaf(path, shape, table, config, self) for path, shape in shapes(config)}

    def known(self, config: TransformerConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes of those tensors of a model that the family has."""
        table = {row.ours: row for row in self.rows if row.when is None or row.when(config)}
        found = {}
        for path, shape in shapes(config):
            with contextlib.suppress(BadInput):
                pieces = _leaf(path, shape, table, config, self).pieces
                found |= {piece.name: piece.shape for piece in pieces}
        return found

    def written(self, config: TransformerConfig) -> dict[str, Any]:
        """The config.json of a model, as far as the family can say it."""
        tree = {"architectures": [self.architecture], "model_type": self.name}
        return tree | {"pad_token_id": None} | self.write(config)

    def tell(self, shapes: Shapes, alike: Callable[[str, str], bool]) -> dict[str, Any]:
        """What `told` makes of tensors; the names of a body alone begin as in other files."""
        if self.told is None:
            return {}
        if self.body and not any(name.startswith(self.body) for name in shapes):
            shapes = {f"{self.body}{name}": shape for name, shape in shapes.items()}
        return self.told(shapes, alike)

    def check_depth(self, store: Store, config: TransformerConfig) -> None:
        """BadInput for a store without the last layer, before a model of many is traced."""
        for row in self.rows:
            stack, _, rest = row.ours.rpartition("layer/")
            if rest not in ("attention_norm/scale", "norm/scale"):
                continue
            depth = getattr(config, stack.strip("/") or "encoder", config).num_layers
            name = row.theirs.format(i=depth - 1)
            there = {name, name.removeprefix(self.body), self._older(name)}
            there.add(self._older(name).removeprefix(self.body))
            if there.isdisjoint(store.shapes):
                near = did_you_mean(name, sorted(store.shapes))
                raise BadInput(f"{store.source} ({self.name}) lacks the tensor {name!r}{near}")

    def adjusted(self, leaves: dict[str, Leaf], store: Store) -> dict[str, Leaf]:
        """The same with the names of a file that holds the body alone, and with older ones."""
        names = [piece.name for leaf in leaves.values() for piece in leaf.pieces]
        inside = [name for name in names if self.body and name.startswith(self.body)]
        found = {*store.shapes}
        if inside and not any({name, self._older(name)} & found for name in inside):
            leaves = self.alone(leaves)

        def there(name: str) -> str:
            older = self._older(name)
            return older if name not in found and older in found else name

        return _renamed(leaves, there)

    def alone(self, leaves: dict[str, Leaf]) -> dict[str, Leaf]:
        """The same with the names of a file that holds the body alone."""
        return _renamed(leaves, lambda name: name.removeprefix(self.body))

    def _older(self, name: str) -> str:
        for now, once in self.older:
            name = name.replace(now, once)
        return name

    def check(self, leaves: dict[str, Leaf], store: Store, config: TransformerConfig) -> None:
        """BadInput, naming the tensor, unless the store holds exactly what the leaves need."""
        pieces = [piece for leaf in leaves.values() for piece in leaf.pieces]
        needed = {piece.name: piece.shape for piece in pieces}
        spare = store.shapes.keys() - needed.keys()
        source = f"{store.source} ({self.name})"
        for name, shape in needed.items():
            if name not in store.shapes:
                near = did_you_mean(name, sorted(spare))
                raise BadInput(f"{source} lacks the tensor {name!r}{near}")
            if store.shapes[name] != shape:
                raise BadInput(
                    f"{source}: the tensor {name!r} has the shape {list(store.shapes[name])}, and "
                    f"its config asks for {list(shape)}"
                )
            kind = store.kind(name)
            if kind is not None:
                raise BadInput(
                    f"{source}: the tensor {name!r} is of type {kind}, which is not read; F64, "
                    "F32, F16 and BF16 are, and of GGUF also Q8_0, Q4_0 and Q4_1"
                )
        again = self.again(leaves, config)
        for name in sorted(spare):
            if name in again or any(re.fullmatch(p, name) for p in self._all_ignored()):
                continue
            near = nearest(name, needed)
            raise BadInput(
                f"{source} holds the tensor {name!r}, which this model has no parameter for"
                + (f" (nearest: {near[0]!r})" if near else "")
            )

    def again(self, leaves: dict[str, Leaf], config: TransformerConfig) -> dict[str, str]:
        """Names under which tensors may stand in a file a second time, with their first names."""
        tied = [(self.alias, "embedding")] * (config.tied_embeddings and bool(self.alias))
        known = [(name, path) for name, path in (*tied, *self.copies) if path in leaves]
        names = {name: leaves[path].pieces[0].name for name, path in known}
        return names | {name.removeprefix(self.body): other for name, other in names.items()}

    def _all_ignored(self) -> Iterator[str]:
        yield from self.ignored
        if self.body:
            yield from (p.removeprefix(re.escape(self.body)) for p in self.ignored)


def _renamed(leaves: dict[str, Leaf], name_of: Callable[[str], str]) -> dict[str, Leaf]:
    def renamed(leaf: Leaf) -> Leaf:
        pieces = (dataclasses.replace(p, name=name_of(p.name)) for p in leaf.pieces)
        return dataclasses.replace(leaf, pieces=tuple(pieces))

    return {path: renamed(leaf) for path, leaf in leaves.items()}


@functools.lru_cache(maxsize=8)
def shapes(config: TransformerConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Path and shape of every parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config))
    return tuple(("/".join(str(key.key) for key in path), leaf.shape) for path, leaf in leaves)


def _leaf(path, shape, table, config, family: Family) -> Leaf:
    layers, kind = _layers_of(path, config)
    stacked = "layers" in path.split("/")[:2]
    row = table.get(kind)
    if row is None:
        raise BadInput(f"{family.name} has no parameter like {path}")
    axes = axes_of(kind)
    lead = (len(layers),) if stacked else ()
    own = shape[len(lead) :]
    experts: tuple[int | None, ...] = (None,)
    if "{e}" in row.theirs:
        lead, experts = (*lead, own[0]), tuple(range(own[0]))
        axes, own = axes[1:], own[1:]
    sizes = dict(zip(axes, own, strict=True)) | {"c": merged(row, family)}
    layout = row.layout or " ".join(axes)
    turned = config.rotary_size if "~" in layout else 0
    pieces = tuple(
        Piece(row.theirs.format(i=i, e=e), layout, axes, sizes, row.part, turned)
        for i, e in itertools.product(layers, experts)
    )
    return Leaf(path, shape, lead, pieces)


def merged(row: Row, family: Family) -> int:
    """How many arrays lie along the axis `c` of the tensor that a row names."""
    return 1 + max(other.part for other in family.rows if other.theirs == row.theirs)


def _layers_of(path: str, config: TransformerConfig) -> tuple[list[int | None], str]:
    """Which layers an array holds, and its path as a table has it."""
    first, *rest = path.split("/")
    if first in ("encoder", "decoder"):
        layers, kind = _layers_of("/".join(rest), getattr(config, first))
        return layers, f"{first}/{kind}"
    turn = len(config.turn)
    if first == "layers" and turn > 1:
        start = int(rest[0].removeprefix("turn_"))
        return list(range(start, config.plain_layers, turn)), "/".join(["layer", *rest[1:]])
    if first == "layers":
        return list(range(config.plain_layers)), "/".join(["layer", *rest])
    if first.startswith("layer_"):
        return [int(first.removeprefix("layer_"))], "/".join(["layer", *rest])
    return [None], path


def qkv(theirs: str, layout: str, bias: str = "", bias_layout: str = "") -> tuple[Row, ...]:
    """Rows of queries, keys and values in one tensor, whose layout names its heads H."""
    rows = []
    for part, name in enumerate(("query", "key", "value")):
        heads = layout if part == 0 else layout.replace("H", "G")
        heads = heads.replace("~", "") if name == "value" else heads
        rows.append(Row(f"layer/attention/{name}", theirs, heads, part))
        if bias:
            heads = bias_layout if part == 0 else bias_layout.replace("H", "G")
            rows.append(Row(f"layer/attention/{name}_bias", bias, heads, part))
    return tuple(rows)


def separate(
    theirs: str, layout: str = "(H K) D", ours: str = "layer/attention"
) -> tuple[Row, ...]:
    """Rows of queries, keys and values in tensors of their own: {x} is q, k or v, {name} the word.

    Biases stand beside them under names that end in `bias`; values have no order of their own.
    """
    rows = []
    for name in ("query", "key", "value"):
        heads = layout if name == "query" else layout.replace("H", "G")
        heads = heads.replace("~", "") if name == "value" else heads
        full = theirs.replace("{x}", name[0]).replace("{name}", name)
        rows.append(Row(f"{ours}/{name}", full, heads))
        bias = full.removesuffix("weight") + "bias"
        rows.append(Row(f"{ours}/{name}_bias", bias, heads.replace(" D", "")))
    return tuple(rows)


def norm(ours: str, theirs: str, scale: str = "weight") -> tuple[Row, ...]:
    """Rows of a norm's scale and bias."""
    other, dot = ("b", "/") if scale == "g" else ("bias", ".")
    return (
        Row(f"{ours}/scale", f"{theirs}{dot}{scale}"),
        Row(f"{ours}/bias", f"{theirs}{dot}{other}"),
    )


def linear(ours: str, theirs: str, layout: str = "", when=None) -> tuple[Row, ...]:
    """Rows of a matrix and its bias."""
    return (
        Row(ours, f"{theirs}.weight", layout, when=when),
        Row(f"{ours}_bias", f"{theirs}.bias", when=when),
    )
