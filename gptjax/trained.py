"""A finished (or stopped) run as something to use: its parameters, its words, its figures."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gptjax.data import DataConfig, Tokenizer, load_tokenizer, prepare
from gptjax.errors import BadInput
from gptjax.evaluation.forms import Form, form_of
from gptjax.evaluation.perplexity import Perplexity
from gptjax.experiment import Experiment
from gptjax.models.config import TransformerConfig
from gptjax.parallel.mesh import MeshConfig, check_mesh, make_mesh
from gptjax.run_folder import load_experiment
from gptjax.runs import say
from gptjax.samples import sample_text
from gptjax.scaling.flops import count_parameters
from gptjax.training.metrics import short
from gptjax.training.restore import restore_params
from gptjax.training.state import abstract_params, param_specs
from gptjax.training.step import make_eval_step


@dataclass(frozen=True, eq=False)
class Trained:
    """A run's parameters on a mesh, with the experiment and the tokenizer they belong to.

    `params` are nested dicts of arrays, for `models.build.model_of(config).apply({"params":
    params}, tokens_BT)` under `jax.set_mesh(mesh)`.
    """

    workdir: Path
    experiment: Experiment
    params: Any
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh

    def __repr__(self) -> str:
        """One line without the arrays."""
        size = short(count_parameters(self.config).total)
        name, kind = self.experiment.name, self.experiment.objective.kind
        return f"<Trained {name}: {size} parameters, {kind}, from {self.workdir}>"

    @property
    def config(self) -> TransformerConfig:
        """The model's config."""
        return self.experiment.model

    @property
    def form(self) -> Form | None:
        """How text is put to the model and its answers are read; None: it goes on, no more."""
        return self.form_for(())

    def form_for(self, prompts: Sequence) -> Form | None:
        """The same of these prompts, texts or ids, which choose among a model's several tasks."""
        length = self.experiment.data.sequence_length
        return form_of(self.config, self.experiment.objective, self.tokenizer, length, prompts)

    def generate(
        self,
        prompt: str = "",
        tokens: int = 256,
        *,
        temperature: float = 0.7,
        top_k: int = 0,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str:
        """The prompt and what the model makes of it, up to so many tokens or a document's end.

        A model that fills blanks gives the prompt with its blanks filled (<extra_id_0>, [MASK], as
        `form.blanks` has them). Temperature 0 takes the likeliest token each time. An empty prompt
        is the start of a document. BadInput for settings and prompts that cannot be.
        """
        train = dataclasses.replace(
            self.experiment.train,
            sample_prompt=prompt,
            sample_tokens=tokens,
            sample_temperature=temperature,
            sample_top_k=top_k,
            sample_top_p=top_p,
            seed=seed,
        )
        train.validate()
        experiment = dataclasses.replace(self.experiment, train=train)
        return sample_text(experiment, self.tokenizer, self.params, self.mesh)

    def evaluate(self, batches: int = 0, data: DataConfig | None = None) -> dict[str, float]:
        """validation_loss (nats per token), bits_per_byte, validation_accuracy.

        `batches` of the validation split, 0 for as many as the run took; `data` another corpus,
        read with the run's own tokenizer. BadInput where the data cannot be prepared.
        """
        own = self.experiment.data
        if data is not None or own.tokenizer == "file":  # that file may be gone by now
            own = self._in_own_words(data or own)
        experiment = dataclasses.replace(self.experiment, data=own)
        experiment.validate()
        check_mesh(MeshConfig(*self.mesh.devices.shape), self.mesh.size, experiment.mesh_refusal)
        dataset = prepare(experiment.data, report=say)
        if dataset.tokenizer.sha256 != self.tokenizer.sha256:
            raise BadInput(
                f"the corpus now gives another tokenizer than {self.workdir} was trained with: "
                f"set data.tokenizer to 'file' and data.tokenizer_file to {self._own_tokenizer}"
            )
        batches = batches or experiment.train.eval_batches
        vocabulary = experiment.vocabulary(self.tokenizer)
        perplexity = Perplexity(
            make_eval_step(experiment),
            dataset,
            batches,
            self.mesh,
            {},
            experiment.objective,
            experiment.rows(vocabulary),
            vocabulary.token_bytes,
        )
        with jax.set_mesh(self.mesh):
            return perplexity(self.params)

    def _in_own_words(self, data: DataConfig) -> DataConfig:
        if self.tokenizer.kind in ("bytes", "symbols"):
            return dataclasses.replace(data, tokenizer=self.tokenizer.kind)
        return dataclasses.replace(data, tokenizer="file", tokenizer_file=str(self._own_tokenizer))

    @property
    def _own_tokenizer(self) -> Path:
        return self.workdir / "tokenizer"


def load(
    workdir: str | Path, *, step: int | None = None, mesh: MeshConfig | None = None
) -> Trained:
    """The run in a folder, of its newest good checkpoint or of `step`, on one device or `mesh`.

    The checkpoint's proofs are verified. BadInput when the folder holds no run, no such step or
    no good checkpoint, or when the devices do not make the mesh.
    """
    if not isinstance(workdir, str | Path) or "\0" in str(workdir):
        raise BadInput(f"the run's folder is {workdir!r}; give a path, such as 'runs/quickstart'")
    if mesh is not None and not isinstance(mesh, MeshConfig):
        raise BadInput(f"mesh is {mesh!r}; give a MeshConfig, such as MeshConfig(data=2)")
    workdir = Path(workdir).expanduser().absolute()
    if (workdir / "sweep.json").exists():
        points = sorted(p.name for p in (workdir / "points").glob("*") if p.is_dir())
        such = f", such as {workdir / 'points' / points[0]}" if points else ""
        raise BadInput(f"{workdir} holds a sweep: give a point's folder, points/NAME{such}")
    experiment = load_experiment(workdir)
    made = make_mesh(mesh or MeshConfig(data=1))
    like = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(made, spec)
        ),
        abstract_params(experiment.model),
        param_specs(experiment.model, made),
    )
    tokenizer = load_tokenizer(workdir / "tokenizer")
    params = restore_params(workdir / "checkpoints", like, step, report=say)
    return Trained(workdir, experiment, params, tokenizer, made)
