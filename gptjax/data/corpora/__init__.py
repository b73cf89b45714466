"""Where the text comes from. A corpus lists itself cheaply and yields its documents."""

from gptjax.data.cache import Report
from gptjax.data.config import DataConfig
from gptjax.data.corpora.base import Corpus, DocumentStore
from gptjax.data.corpora.digits import Digits
from gptjax.data.corpora.files import Files
from gptjax.data.corpora.pycode import PyCode
from gptjax.data.corpora.shakespeare import Shakespeare
from gptjax.data.corpora.tfds_sets import TfdsSet
from gptjax.data.corpora.zipf_facts import ZipfCorpus

__all__ = ["Corpus", "DocumentStore", "make_corpus"]


def make_corpus(config: DataConfig, report: Report) -> Corpus:
    """The corpus that a valid `config` names; checks what is cheap, reads no document."""
    if config.corpus.startswith("tfds:"):
        return TfdsSet(config, report)
    if config.corpus == "files":
        return Files(config, report)
    if config.corpus == "shakespeare":
        return Shakespeare(config, report)
    if config.corpus == "zipf_facts":
        return ZipfCorpus(config, report)
    if config.corpus == "digits":
        return Digits(config, report)
    return PyCode(config, report)
