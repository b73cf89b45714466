"""Text in, batches of token windows out; imports no jax. Start at `prepare`."""

from gptjax.data.config import DataConfig
from gptjax.data.prepare import Dataset, prepare
from gptjax.data.tokenizers import Tokenizer, load_tokenizer

__all__ = ["DataConfig", "Dataset", "Tokenizer", "load_tokenizer", "prepare"]
