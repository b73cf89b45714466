"""What the losses of sweeps are losses of: which of them have one floor, and in which words."""

import dataclasses
import json
from collections.abc import Iterable, Mapping

from gptjax.errors import BadInput
from gptjax.experiment import OF_THE_LOSS, Experiment
from gptjax.sweeps.folder import SweepFolder

# Fields of objectives that change who reads what, or the loss beside the nats: not what is hidden.
AS_THEY_LIKE = {"reading", *OF_THE_LOSS}
WORDS = {"bytes": "bytes", "symbols": "symbols"}


def task_of(folder: SweepFolder, label: str) -> str:
    """What a sweep's points predict, as one text; BadInput for two.

    Of next-token prediction the corpus: its loss is compared over tokenizers and lengths. Of other
    objectives also what they hide of which windows: anything else is another floor.
    """
    found = {_task(point.experiment) for point in folder.points.values()}
    if len(found) > 1:
        one = "one corpus"
        if any(point.experiment.objective.kind != "next_token" for point in folder.points.values()):
            one += ", objective and length of windows"
        raise BadInput(f"{label} holds points on {', '.join(sorted(found))}; give {one}")
    return found.pop()


def _task(experiment: Experiment) -> str:
    data, objective = experiment.to_json()["data"], experiment.objective
    more = {"files": data["files"], "zipf_facts": data["facts"]}.get(data["corpus"])
    text = data["corpus"] + (f" {json.dumps(more, sort_keys=True)}" if more else "")
    if objective.kind == "next_token":
        return text
    chosen = [
        f"{f.name}={getattr(objective, f.name)!r}"
        for f in dataclasses.fields(objective)
        if f.name not in AS_THEY_LIKE and getattr(objective, f.name) != f.default
    ]
    tokens = WORDS.get(data["tokenizer"], f"tokens ({data['tokenizer']})")
    return f"{text}, {objective.kind}({', '.join(chosen)}) of {experiment.lengths.raw} {tokens}"


def unit_of(experiments: Iterable[Experiment], unit: str) -> str:
    """A unit such as "nats per token", in full where not every token is predicted."""
    if all(experiment.objective.kind == "next_token" for experiment in experiments):
        return unit
    return unit.replace("per token", "per predicted token").replace(
        "per byte", "per predicted byte"
    )


def remarks_on(folders: Mapping[str, SweepFolder]) -> list[str]:
    """What tokens, bytes and parameters are of, where that is not plain; sweeps by label."""
    shares: dict[tuple[int, int], list[str]] = {}
    pairs = []
    for label, folder in folders.items():
        experiments = [point.experiment for point in folder.points.values()]
        for experiment in experiments:
            lengths = experiment.lengths
            labels = shares.setdefault((lengths.predicted, lengths.raw), [])
            if experiment.objective.kind != "next_token" and label not in labels:
                labels.append(label)
        if any(experiment.model.kind == "encoder_decoder" for experiment in experiments):
            pairs.append(label)
    found = [
        f"of every {raw} tokens of text at most {predicted} are predicted by {', '.join(labels)}: "
        "tokens and bytes count the text"
        for (predicted, raw), labels in shares.items()
        if labels
    ]
    if pairs:
        found.append(
            f"parameters of {', '.join(pairs)} are those of encoder and decoder together, of which "
            "a token passes one"
        )
    return found
