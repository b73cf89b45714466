"""Large decoders on GPT-3's lines by others: MT-NLG, Jurassic-1, PanGu-alpha and CPM-1."""

from gptjax.models.config import AttentionConfig, DecoderConfig
from gptjax.models.presets.table import chosen, published, sizes

MT_NLG = sizes("mt-nlg-")
JURASSIC = sizes("j1-")
PANGU_ALPHA = sizes("pangu-alpha-")
CPM = sizes("cpm-")


def mt_nlg(size: str = "530b") -> DecoderConfig:
    """Megatron-Turing NLG (arXiv 2201.11990): "530b", a GPT-2 of 105 layers with dense attention.

    Weights start from N(0, 1 / (3 d_model)) there, from N(0, 0.02) here. The form of GELU is
    Megatron's fused one, by tanh.
    """
    return published(chosen("MT-NLG", size, MT_NLG))


def jurassic(size: str) -> DecoderConfig:
    """Jurassic-1 (Lieber et al. 2021): "large" (7.5B) or "jumbo" (178B), a GPT-2 of 256000 ids.

    Of "large" no size was read in a source. The form of GELU is not published.
    """
    return published(chosen("Jurassic-1", size, JURASSIC))


def pangu_alpha(size: str) -> DecoderConfig:
    """PanGu-alpha (arXiv 2104.12369): "2.6b", "13b" or "200b".

    A GPT-2 whose last layer, above the final norm, is a query layer: its queries are learned
    vectors of positions, not the stream. The table counts it among the layers: 31 and one for
    2.6b. The norm's epsilon is not published.
    """
    attention = AttentionConfig(top_query="positions")
    return published(chosen("PanGu-alpha", size, PANGU_ALPHA), attention)


def cpm(size: str) -> DecoderConfig:
    """CPM-1 (arXiv 2012.00413): "small" (109M), "medium" (334M) or "large" (2.6B).

    A GPT-2 of 30000 Chinese ids. Layers and width of "small" and "medium" were not read in a
    source; they give the parameters told.
    """
    return published(chosen("CPM-1", size, CPM))
