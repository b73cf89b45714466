"""What a run has to show at its end: text that its model makes, in the way of its objective."""

import numpy as np

from gptjax.data import Dataset, Tokenizer
from gptjax.evaluation.blanks import Asked, answers, blank_lines
from gptjax.evaluation.forms import Form, form_of
from gptjax.evaluation.generate import generate
from gptjax.evaluation.sampling import Sampling
from gptjax.evaluation.texts import Prompt
from gptjax.experiment import Experiment
from gptjax.objectives.corruption import longest_run, parts_of

SILENT = ("permutation_lm",)  # objectives whose models write nothing here


def sample_text(experiment: Experiment, tokenizer: Tokenizer, params, mesh) -> str:
    """`train.sample_prompt` and what the model makes of it, with the run's own settings.

    Where it fills blanks of the prompt, that is the text with them filled. BadInput for a prompt
    that the objective's models cannot read.
    """
    train = experiment.train
    form = _form(experiment, tokenizer)
    if form is not None:
        return _answered(experiment, params, form, form.prompt(train.sample_prompt), shown=False)
    prompt = np.array([tokenizer.separator_id, *tokenizer.encode(train.sample_prompt)], np.int32)
    tokens = generate(
        experiment.model,
        params,
        prompt[None],
        train.sample_tokens,
        temperature=train.sample_temperature,
        top_k=train.sample_top_k,
        top_p=train.sample_top_p,
        seed=train.seed,
        stop_token=tokenizer.separator_id,
        vocab_size=tokenizer.vocab_size,
        mesh=mesh,
    )[0]
    return train.sample_prompt + tokenizer.decode(tokens)


def sample_of(experiment: Experiment, dataset: Dataset, params, mesh) -> str:
    """The sample at the end of a run; of a window of validation where the objective hides parts.

    A prompt of the run's own takes the window's place. Empty where the objective's models write no
    text, or no sample is wanted.
    """
    train = experiment.train
    if not train.sample_tokens or experiment.objective.kind in SILENT:
        return ""
    form = _form(experiment, dataset.tokenizer)
    if form is None or train.sample_prompt:
        return sample_text(experiment, dataset.tokenizer, params, mesh)
    prompt = form.asked(_window(experiment, dataset, form))
    return _answered(experiment, params, form, prompt, shown=True)


def _form(experiment: Experiment, tokenizer: Tokenizer) -> Form | None:
    length, prompts = experiment.data.sequence_length, (experiment.train.sample_prompt,)
    return form_of(experiment.model, experiment.objective, tokenizer, length, prompts)


def _window(experiment: Experiment, dataset: Dataset, form: Form) -> np.ndarray:
    """What is read of a row of validation: a sample's tokens of it, and its first blank."""
    rows = experiment.rows(experiment.vocabulary(dataset.tokenizer))
    batch = next(iter(dataset.validation_batches(1, rows=rows)))
    row = {name: values[0] for name, values in batch.items()}
    most = experiment.train.sample_tokens
    if form.kind == "masks":
        apart = "source_" if "source" in row else ""
        ids = row["source" if apart else "tokens"]
        if form.before:
            ids = ids[row[f"{apart}segments"] >= 0][1:-1]
        return _first(ids, most, form)
    ids = row["tokens"][row["prefix"]] if form.kind == "blocks" else parts_of(row)[0]
    ids = ids[: len(ids) - len(form.after)]
    if form.kind == "whole":  # an answer ends where its document does
        ids = longest_run(ids, form.vocabulary.separator)
    return ids[-most:] if form.kind == "continuation" else _first(ids, most, form)


def _first(ids: np.ndarray, most: int, form: Form) -> np.ndarray:
    blanks = np.flatnonzero(np.isin(ids, list(form.blanks.values())))
    return ids[: max(most, *blanks[:1] + 1)] if len(blanks) else ids[:most]


def _answered(experiment: Experiment, params, form: Form, prompt: Prompt, shown: bool) -> str:
    train = experiment.train
    drawing = train.sample_temperature, train.sample_top_k, train.sample_top_p, 1.0, train.seed
    asked = Asked(experiment.model, params, form)
    text = answers(asked, [prompt], train.sample_tokens, Sampling(*drawing))[0]
    if not shown:
        return f"{prompt.text}{text.text}" if form.kind == "continuation" else text.text
    if form.kind == "continuation":
        return f"{prompt.text}\n--- goes on\n{text.text}"
    lines = "\n".join(blank_lines(asked, text))
    return f"{prompt.text}\n--- filled\n{lines}\n{text.text}"
