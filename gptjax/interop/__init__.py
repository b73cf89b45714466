"""Other people's checkpoints in and out, without torch.

`load("hf:FOLDER")` gives a model's config, parameters and tokenizer; `export` writes a model as
`transformers.AutoModelForCausalLM.from_pretrained` loads it.
"""

from gptjax.lazy import lazy

_WHERE = {
    "FAMILIES": "gptjax.interop.families",
    "Pretrained": "gptjax.interop.loading",
    "export": "gptjax.interop.exporting",
    "load": "gptjax.interop.loading",
    "read_config": "gptjax.interop.loading",
}

__all__ = sorted(_WHERE)
__getattr__, __dir__ = lazy(__name__, _WHERE)
