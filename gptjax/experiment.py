"""An Experiment is one complete run as a frozen value: what is trained, on what, how, where.

It validates itself, survives a JSON round trip, and knows what follows from it (steps, tokens).
"""

import dataclasses
import functools
import json
import re
from dataclasses import dataclass, field
from typing import Literal

from gptjax.data.config import DataConfig
from gptjax.data.loader import Rows
from gptjax.data.tokenizers.base import Tokenizer
from gptjax.data.vocabulary import AS_SEPARATOR, Vocabulary, vocabulary_of
from gptjax.errors import BadInput, check_types
from gptjax.models.config import TransformerConfig
from gptjax.models.kinds import config_type
from gptjax.objectives import Lengths, NextToken, Objective, objective_of, possible
from gptjax.parallel.mesh import MeshConfig
from gptjax.scaling.flops import Flops, row_flops
from gptjax.training.config import OptimConfig, program_config

NAME = re.compile(r"\w[\w.=+-]*(/\w[\w.=+-]*)*")  # the default workdir is a folder of this name


@dataclass(frozen=True)
class TrainConfig:
    """How long, and what is written down on the way. Steps are optimizer updates."""

    tokens: int = 0  # the budget; steps follow from it
    steps: int = 0  # above 0 it takes the place of both budgets
    flops: float = 0.0  # a budget by the ledger; above 0 it takes the place of tokens
    seed: int = 0
    log_every: int = 1
    eval_every: int = 0  # 0: ten times a run
    eval_batches: int = 16
    checkpoint_every: int = 0  # 0: ten times a run
    keep_checkpoints: int = 2  # the newest so many; 0: all
    sample_prompt: str = ""  # empty: a sample from the start of a document
    sample_tokens: int = 256  # 0: no sample
    sample_temperature: float = 0.7
    sample_top_k: int = 0  # 0: all
    sample_top_p: float = 0.95

    def validate(self) -> None:
        check_types("train", self)
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, str) and value < 0:
                raise BadInput(f"train.{f.name} is {value}; give 0 or more")
        if not (self.tokens or self.steps or self.flops):
            raise BadInput("train.tokens, train.steps and train.flops are all 0; give one of them")
        if not 0 < self.sample_top_p <= 1:
            raise BadInput(f"train.sample_top_p is {self.sample_top_p}; give above 0, up to 1")
        if not self.log_every or not self.eval_batches:
            raise BadInput("train.log_every and train.eval_batches must be 1 or more")


@dataclass(frozen=True)
class Experiment:
    """A complete run; `--part.field=value` on the command line replaces one of its fields."""

    name: str
    model: TransformerConfig
    data: DataConfig
    train: TrainConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    objective: Objective = field(default_factory=NextToken)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @functools.cached_property  # the loop asks several times a step
    def lengths(self) -> Lengths:
        """The sizes of a row of a batch."""
        return self.objective.lengths(self.data.sequence_length, self.model.kind)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of text, whatever an objective makes of them."""
        return self.data.batch_size * self.lengths.raw

    @property
    def predicted_per_step(self) -> int:
        """Places whose output meets the vocabulary; some may count nothing in a row."""
        return self.data.batch_size * self.lengths.predicted

    @property
    def step_flops(self) -> Flops:
        """FLOPs of the rows of a step, by the ledger."""
        _, tokens, predicted, source, _, ahead = self.lengths
        row = row_flops(self.model, tokens, predicted, source, ahead)
        return row / (1 / self.data.batch_size)

    @property
    def flops(self) -> float:
        """Of the whole training."""
        return self.step_flops.training * self.steps

    @property
    def passed_per_step(self) -> float:
        """Tokens that pass all parameters: of an encoder-decoder half a token on either side.

        A token that passes a trunk and one of its modules counts whole.
        """
        sides = 2 if self.model.kind == "encoder_decoder" else 1
        return self.data.batch_size * (self.lengths.tokens + self.lengths.source) / sides

    @functools.cached_property  # as often
    def steps(self) -> int:
        """As given; or whole ones nearest to the budget in FLOPs, or all that tokens begin."""
        train = self.train
        if train.flops and not train.steps:
            return max(round(train.flops / self.step_flops.training), 1)
        return train.steps or -(-train.tokens // self.tokens_per_step)

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    def every(self, what: Literal["eval", "checkpoint"]) -> int:
        """Steps between two evaluations or checkpoints."""
        return getattr(self.train, f"{what}_every") or max(self.steps // 10, 1)

    @property
    def program(self) -> tuple:
        """What is compiled in: experiments of equal value share one compiled training step."""
        data = self.data
        shape = (data.batch_size, data.sequence_length, data.document_attention, data.positions)
        return (self.model, self.objective, program_config(self.optim), shape, self.mesh)

    def validate(self) -> None:
        """One clear line for a run that cannot be; nothing is computed before."""
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise BadInput(
                f"the experiment's name is {self.name!r}; give letters, digits and . _ = + - /, a "
                "letter or digit first"
            )
        for f in dataclasses.fields(self)[1:]:
            part = getattr(self, f.name)
            if not isinstance(part, f.type):
                raise BadInput(f"the experiment's {f.name} is {part!r}, not a {f.type.__name__}")
            part.validate()
        self._check_objective()
        zeros = self.model.init == "fan_in_zero" and self.model.parametrization == "mup"
        if zeros and self.optim.name == "adafactor":
            raise BadInput(
                "optim.name = 'adafactor' moves a weight by a share of its size, which leaves "
                "weights that start at zero outside muP; give --model.init=fan_in or "
                "--optim.name=adamw"
            )
        if self.data.batch_size % self.optim.accumulation:
            raise BadInput(
                f"data.batch_size = {self.data.batch_size} is not divisible by "
                f"optim.accumulation = {self.optim.accumulation}"
            )
        symbols = self.data.symbols + 1
        if self.data.tokenizer == "symbols" and self.model.vocab_size < symbols:
            raise BadInput(
                f"model.vocab_size = {self.model.vocab_size} is smaller than the {symbols} symbols "
                f"of {self.data.corpus}; give --model.vocab_size={symbols}"
            )
        trained = self.data.tokenizer in ("bpe", "unigram") and not self.data.tokenizer_file
        if trained and self.data.vocab_size > self.model.vocab_size:
            raise BadInput(
                f"data.vocab_size = {self.data.vocab_size} is larger than model.vocab_size = "
                f"{self.model.vocab_size}; give --model.vocab_size="
                f"{self.data.vocab_size + self.extra_ids}"
            )
        self._check_flops()
        ids = {"bytes": 257, "symbols": symbols}.get(self.data.tokenizer, 0)
        self.check_vocabulary(self.data.vocab_size if trained else ids, self.extra_ids)

    @property
    def extra_ids(self) -> int:
        """Special tokens of the objective beyond the tokenizer's ids, as far as is known here."""
        brought = self.data.tokenizer == "file" or self.data.tokenizer_file
        return 0 if brought else len(set(self.roles) - set(AS_SEPARATOR))

    def _check_flops(self) -> None:
        flops = self.train.flops
        if not flops or self.train.steps:
            return
        one = self.step_flops.training
        if not one <= flops < one * 2**31:
            found = "less than one step" if flops < one else "more than 2 ** 31 steps"
            raise BadInput(f"train.flops = {flops:g} is {found} of {one:.4g} FLOPs of this run")

    def _check_objective(self) -> None:
        """Refuse what the objective and the model, or the data, cannot be together."""
        kind, objective, data = self.model.kind, self.objective, self.data
        if kind not in objective.families:
            raise BadInput(
                f"objective '{objective.kind}' is for a model of kind "
                f"{' or '.join(objective.families)}, and this one is of kind {kind}, which can "
                f"have {', '.join(possible(kind))}"
            )
        longest, length = max(self.lengths.tokens, self.lengths.source), data.sequence_length
        if longest > self.model.context_length:
            made = "" if longest == length else f", which makes rows of {longest} tokens,"
            raise BadInput(
                f"data.sequence_length = {length}{made} is longer than model.context_length = "
                f"{self.model.context_length}; raise the second"
            )
        parted = data.document_attention == "within" or data.positions == "document"
        if parted and (not objective.in_place or self.lengths.source):
            raise BadInput(
                f"objective '{objective.kind}' moves tokens of a window, or reads it apart from "
                "others, so data.document_attention must be 'across' and data.positions 'window'"
            )
        if self.model.positions == "rotary_blocks" and objective.kind != "glm":
            raise BadInput(
                "model.positions = 'rotary_blocks' turns half of each head with the place in a "
                f"blank, and objective '{objective.kind}' has none; give --objective=glm or "
                "--model.positions=rotary"
            )
        if data.corpus == "zipf_facts" and objective.kind != "next_token":
            raise BadInput(
                f"data.corpus='zipf_facts' is made for the objective next_token, not "
                f"'{objective.kind}'"
            )
        classes = objective.classes()
        if classes and getattr(self.model, "classes", 0) != classes:
            raise BadInput(
                f"objective '{objective.kind}' sorts rows into {classes} classes; give "
                f"--model.pooler=first --model.classes={classes}"
            )

    def vocabulary(self, tokenizer: Tokenizer) -> Vocabulary:
        """The tokenizer's with the objective's special tokens; BadInput where it does not fit."""
        found = vocabulary_of(tokenizer, self.roles)
        self.check_vocabulary(found.size, len(found.extra))
        return found

    def rows(self, vocabulary: Vocabulary) -> Rows:
        """How the objective makes rows of windows."""
        objective, length, kind = self.objective, self.data.sequence_length, self.model.kind
        make = objective.transform(length, kind, vocabulary)
        fixed = getattr(objective, "masking", "dynamic") == "static"
        of_rows = dataclasses.replace(objective, **OF_THE_LOSS)
        name = "" if objective.kind == "next_token" else repr(of_rows)
        return Rows(self.lengths.raw, self.lengths.overlap, make, fixed, name)

    @property
    def roles(self) -> tuple[str, ...]:
        """The special tokens that the objective's rows need."""
        return self.objective.roles(self.data.sequence_length)

    def _check_outputs(self, size: int) -> None:
        if size > self.model.outputs:
            raise BadInput(
                f"model.embedding.outputs = {self.model.embedding.outputs} leaves out some of the "
                f"tokenizer's {size} ids, which are targets too; give 0 (all) or {size}"
            )

    def check_vocabulary(self, size: int, extra: int = 0) -> None:
        """Refuse a tokenizer with more ids than the model has; extra: special ones beyond them."""
        total = size + extra
        self._check_outputs(min(total, self.model.vocab_size))
        if total > self.model.vocab_size:
            more = f" and the {extra} special tokens of '{self.objective.kind}'" if extra else ""
            raise BadInput(
                f"model.vocab_size = {self.model.vocab_size} is smaller than the tokenizer's "
                f"{size}{more}; give --model.vocab_size={total}"
            )

    def mesh_refusal(self, data: int, fsdp: int, tensor: int) -> str | None:
        """What stands against this mesh in words, or None."""
        model, rows = self.model, self.data.batch_size // self.optim.accumulation
        if rows % (data * fsdp):
            return f"{rows} sequences are not divisible by data x fsdp = {data * fsdp}"
        if model.num_heads % tensor:
            return f"model.num_heads = {model.num_heads} is not divisible by tensor = {tensor}"
        if model.kind == "task_modules":
            for what in ("num_heads", "ff_size"):
                size = getattr(model.generation, what)
                if size % tensor:
                    return f"{what} = {size} of a task is not divisible by tensor = {tensor}"
        if model.kv_heads % tensor and model.kv_heads != 1:
            return f"model.num_kv_heads = {model.kv_heads} is not divisible by tensor = {tensor}"
        experts = {model.layer_kind(i).experts for i in range(model.num_layers)}
        if True in experts and model.experts.count % tensor:
            return (
                f"model.experts.count = {model.experts.count} is not divisible by tensor = {tensor}"
            )
        if False in experts and model.ff_size % tensor:
            return f"the feed-forward width {model.ff_size} is not divisible by tensor = {tensor}"
        return None

    def with_objective(self, kind: str) -> "Experiment":
        """The same with the objective of that name and its defaults; itself for "" or its own.

        The settings of the loss over the vocabulary stay.
        """
        own = self.objective
        if not kind or objective_of(kind) is type(own):
            return self
        objective = objective_of(kind)(z_loss=own.z_loss, chunk_tokens=own.chunk_tokens)
        return dataclasses.replace(self, objective=objective)

    def to_json(self) -> dict:
        tree = json.loads(json.dumps(dataclasses.asdict(self)))
        for part in KINDS:
            tree[part] = {"kind": getattr(self, part).kind} | tree[part]
        return tree

    @staticmethod
    def from_json(tree: dict) -> "Experiment":
        """The experiment of a run's `experiment.json`; BadInput names what does not fit."""
        import cattrs

        if not isinstance(tree, dict):
            raise BadInput(f"not a usable experiment: it is a {type(tree).__name__}, not an object")
        tree = upgraded(tree)
        converter = cattrs.Converter(forbid_extra_keys=True)
        for kind in (bool, int, float, str):
            converter.register_structure_hook(kind, _as_it_is)
        for base, (_, kinds) in KINDS.items():
            converter.register_structure_hook_func(
                lambda cls, base=PARTS[base]: cls is base,
                lambda tree, _, kinds=kinds: converter.structure(
                    {k: v for k, v in tree.items() if k != "kind"}, kinds(tree["kind"])
                ),
            )
        try:
            return converter.structure(tree, Experiment)
        except Exception as error:
            problems = "; ".join(cattrs.transform_error(error, path="experiment"))
            raise BadInput(f"not a usable experiment: {problems}") from None


OF_THE_LOSS = {"z_loss": 0.0, "chunk_tokens": 0}  # fields of objectives that change no row

# Parts of several kinds: that of runs of earlier versions, and the type of each.
KINDS = {"model": ("decoder", config_type), "objective": ("next_token", objective_of)}
PARTS = {f.name: f.type for f in dataclasses.fields(Experiment)}


def _as_it_is(value, kind: type):
    # cattrs would call `kind`: 1.5 would become 1 and "no" True.
    if type(value) is int and kind is float:
        return float(value)
    if type(value) is not kind:
        raise TypeError  # cattrs says where and which type it expected
    return value


# Fields that had other names in runs of earlier versions.
MOVED = {
    "model.head_dim": "model.attention.head_dim",
    "model.position_shape": "model.embedding.position_shape",
    "model.rotary_base": "model.rotary.base",
    "model.rotary_fraction": "model.rotary.fraction",
}


def upgraded(tree: dict) -> dict:
    """The JSON tree of a run as this version would have written it.

    Fields that have moved are in their new places; those that did not exist have their defaults,
    with which a run computes what it did. Anything else stays as it is.
    """
    tree = json.loads(json.dumps(tree))
    for old, new in MOVED.items():
        *parents, name = old.split(".")
        if name in (place := _branch(tree, parents, {})):
            *parents, leaf = new.split(".")
            _branch(tree, parents, None).setdefault(leaf, place.pop(name))
    for name, kind in PARTS.items():
        if dataclasses.is_dataclass(kind) and isinstance(tree.get(name), dict):
            if name in KINDS:
                default, type_of = KINDS[name]
                kind = type_of(tree[name].setdefault("kind", default))
            _fill(tree[name], kind)
    return tree


def _branch(tree: dict, names: list[str], missing: dict | None) -> dict:
    """The object under these names, made where it is missing; `missing` for what is none."""
    for name in names:
        tree = tree.setdefault(name, {}) if missing is None else tree.get(name, missing)
        if not isinstance(tree, dict):
            return {}
    return tree


def _fill(tree: dict, cls: type) -> None:
    for f in dataclasses.fields(cls):
        if isinstance(tree.get(f.name), dict) and dataclasses.is_dataclass(f.type):
            _fill(tree[f.name], f.type)
        elif f.name not in tree and f.default is not dataclasses.MISSING:
            tree[f.name] = f.default
        elif f.name not in tree and f.default_factory is not dataclasses.MISSING:
            value = f.default_factory()
            value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
            tree[f.name] = json.loads(json.dumps(value))
