"""GLM (arXiv 2103.10360) at its published sizes, GLM-130B (arXiv 2210.02414) and ChatGLM-6B."""

from experiments.published import published
from gptjax import GLM, Experiment
from gptjax.models import presets
from gptjax.registry import register, register_sizes

RATES = {"base": 4e-4, "large": 2e-4, "10b": 1e-4, "10b-chinese": 1e-4}
STEPS = {"base": 150_000, "large": 200_000, "large-chinese": 250_000, "10b": 250_000}
TASKS = {  # shares of rows with sentences and with the end of a text as blanks
    "base": (0.0, 0.0),
    "large": (0.0, 0.0),
    "roberta": (0.0, 0.0),
    "410m": (0.0, 0.5),
    "515m": (0.0, 0.5),
    "2b": (0.3, 0.2),
}


@register_sizes(
    {
        "base": "GLM base, 110M: 12 layers, width 768.",
        "large": "GLM large, 335M: 24 layers, width 1024.",
        "410m": "GLM 410M: 30 layers, width 1024.",
        "515m": "GLM 515M: 30 layers, width 1152.",
        "roberta": "GLM on RoBERTa's text, 335M: 24 layers, width 1024.",
        "2b": "GLM 2B: 36 layers, width 2048.",
        "10b": "GLM 10B: 48 layers, width 4096.",
        "large-chinese": "GLM large in Chinese: 24 layers, width 1024.",
        "10b-chinese": "GLM 10B in Chinese: 48 layers, width 4096.",
    }
)
def glm(size: str) -> Experiment:
    """Blanks of Poisson(3) tokens over 15% of the text; larger ones also sentences and ends.

    Rates and steps are those of the repository's scripts; where it has none, 2e-4 and 200,000 stand
    here, and 1024 sequences as the batch. The shares of the tasks beyond 410M are 0.5, 0.3 and 0.2.
    """
    sentences, ends = TASKS.get(size, (0.3, 0.2))
    model = presets.glm(size)
    return published(
        model,
        lr=RATES.get(size, 2e-4),
        batch_size=1024,
        steps=STEPS.get(size, 200_000),
        sequence_length=model.context_length - 1,
        warmup_steps=6_000,
        objective=GLM(sentence_share=sentences, document_share=ends),
        weight_decay=0.1,
    )


@register
def glm_130b() -> Experiment:
    """GLM-130B: 70 layers, width 12288.

    400B tokens in batches of 4224 sequences of 2048; 30% of rows blanks, 70% ends of texts.

    The rate is a survey's. Instructions that were mixed in are left out.

    python experiments/run.py --exp=glm_130b --dry-run
    """
    return published(
        presets.glm_130b(),
        lr=8e-5,
        batch_size=4224,
        tokens=4e11,
        warmup_steps=2_000,
        objective=GLM(document_share=0.7),
        weight_decay=0.1,
    )


@register
def chatglm_6b() -> Experiment:
    """ChatGLM-6B before it learned to chat: 28 layers, width 4096, 1T tokens in rows of 2048.

    Rate, batch and the shares of blanks are not published: those of GLM-130B stand here, with 2048
    sequences. Cost by the ledger: 4.3e22 FLOPs.

    python experiments/run.py --exp=chatglm_6b --dry-run
    """
    return published(
        presets.chatglm("6b"),
        lr=8e-5,
        batch_size=2048,
        tokens=1e12,
        warmup_steps=2_000,
        objective=GLM(document_share=0.7),
        weight_decay=0.1,
    )
