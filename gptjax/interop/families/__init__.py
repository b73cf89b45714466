"""All families by the `model_type` of transformers, and those of other files."""

from gptjax.interop.families.bert import BERT, ERNIE, MEGATRON_BERT, ROBERTA
from gptjax.interop.families.gpt import GPT1, GPT2, GPT_NEO, GPTJ, IMAGE_GPT, NEOX
from gptjax.interop.families.llama import COHERE, LLAMA, MISTRAL, MIXTRAL
from gptjax.interop.families.others import BLOOM, OPT, XLNET
from gptjax.interop.families.switch import SWITCH
from gptjax.interop.families.t5 import BART, MT5, T5, UMT5

# The order in which an export tries them.
FAMILIES = {
    family.name: family
    for family in (
        GPT2,
        LLAMA,
        MISTRAL,
        MIXTRAL,
        NEOX,
        GPTJ,
        GPT_NEO,
        OPT,
        BLOOM,
        COHERE,
        IMAGE_GPT,
        GPT1,
        XLNET,
        BERT,
        ROBERTA,
        MEGATRON_BERT,
        ERNIE,
        T5,
        MT5,
        UMT5,
        SWITCH,
        BART,
    )
}
