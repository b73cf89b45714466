"""gptjax: train the GPT family and its relatives, and predict the big run from the small ones.

`gptjax.fit(gptjax.get("quickstart"), "runs/quickstart")` is what
`python experiments/run.py --exp=quickstart` does. Nothing heavy is imported before it is used.
"""

from gptjax.lazy import lazy

__version__ = "0.1.0"

_WHERE = {
    "Experiment": "gptjax.experiment",
    "TrainConfig": "gptjax.experiment",
    "DataConfig": "gptjax.data.config",
    "DecoderConfig": "gptjax.models.config",
    "EncoderConfig": "gptjax.models.kinds",
    "EncoderDecoderConfig": "gptjax.models.kinds",
    "TwoStreamConfig": "gptjax.models.kinds",
    "TaskModulesConfig": "gptjax.models.kinds",
    "MeshConfig": "gptjax.parallel.mesh",
    **dict.fromkeys(
        (
            "Denoising",
            "GLM",
            "MaskedLM",
            "MultiTask",
            "NextToken",
            "PermutationLM",
            "PrefixLM",
            "SpanCorruption",
            "UL2",
        ),
        "gptjax.objectives",
    ),
    "OptimConfig": "gptjax.training.config",
    "Preempted": "gptjax.training.signals",
    "fit": "gptjax.runs",
    "fit_population": "gptjax.population",
    "get": "gptjax.registry",
    "load": "gptjax.trained",
    "names": "gptjax.registry",
    "register": "gptjax.registry",
    "Analysis": "gptjax.sweeps.sweep",
    "Sweep": "gptjax.sweeps.sweep",
    "compare": "gptjax.sweeps.compare",
    "run_planned": "gptjax.sweeps.design",
    "run_sweep": "gptjax.sweeps.runner",
}

__all__ = sorted(_WHERE)
__getattr__, __dir__ = lazy(__name__, _WHERE)
