"""Every field that cannot be used is refused by name, with the way out."""

import subprocess
import sys
from dataclasses import replace

import pytest

from gptjax.data import DataConfig
from gptjax.data.config import cache_root
from gptjax.errors import BadInput

BASE = DataConfig()

REFUSED = {
    "corpus": ("pycod", "did you mean 'pycode'"),
    "text_key": ("", "text_key is empty"),
    "tokenizer": ("bep", "not one of bytes, bpe, unigram, symbols, file; did you mean 'bpe'"),
    "tokenizer_file": ("m.model", "data.tokenizer is 'bytes'"),
    "files": (("*.txt",), "set data.corpus to 'files'"),
    "batch_size": (0, "batch_size=0 is too small; the least is 1"),
    "sequence_length": (-3, "the least is 1"),
    "max_bytes": (-1, "the least is 0"),
    "validation_fraction": (1.0, "between 0 and 1"),
    "epochs": (1.5, "is not of type int"),
    "seed": (True, "is not of type int"),
    "long_documents": ("cut", "not one of split, truncate, refuse"),
    "document_attention": ("withn", "did you mean 'within'"),
    "positions": ("doc", "not one of window, document"),
    "workers": ("2", "is not of type int"),
    "cache_dir": (3, "is not of type str"),
}


def test_defaults_and_common_choices_are_valid():
    BASE.validate()
    replace(BASE, corpus="files", files=("*.txt",)).validate()
    replace(BASE, corpus="tfds:lm1b").validate()
    replace(BASE, corpus="tfds:wikipedia/20230601.en:1.0.0").validate()
    replace(BASE, tokenizer="bpe", tokenizer_file="m.model").validate()
    replace(BASE, tokenizer="file", tokenizer_file="gpt2").validate()


@pytest.mark.parametrize("field", REFUSED)
def test_a_bad_field_is_named(field):
    value, message = REFUSED[field]
    with pytest.raises(BadInput, match=f"data.{field}.*{message}|{message}"):
        replace(BASE, **{field: value}).validate()


def test_combinations_are_refused():
    for changes, message in [
        ({"corpus": "files"}, "needs data.files"),
        ({"corpus": "tfds:"}, "not a TFDS name"),
        ({"tokenizer": "bpe", "vocab_size": 100}, "the least is 320"),
        ({"tokenizer": "file"}, "needs data.tokenizer_file: a folder"),
        ({"tokenizer": "bpe", "vocab_size": 1 << 31}, "the largest is 2147483647"),
        ({"files": "*.txt"}, "not a list"),
        ({"workers": 10**6}, "workers=1000000 is too large; the most is 1024"),
        ({"tokenizer": "bpe", "vocab_size": 1 << 21}, "the most is 1048576"),
    ]:
        with pytest.raises(BadInput, match=message):
            replace(BASE, **changes).validate()


def test_importing_the_data_package_imports_nothing_heavy():
    heavy = "{'jax', 'grain', 'tensorflow_datasets', 'sentencepiece'}"
    code = f"import sys, gptjax.data; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_paths_that_no_system_has_are_refused():
    for changes, message in [
        ({"corpus": "files", "files": ("",)}, "holds an empty name"),
        ({"cache_dir": "a\0b"}, "holds NUL"),
        ({"tokenizer": "bpe", "tokenizer_file": "\0"}, "holds NUL"),
    ]:
        with pytest.raises(BadInput, match=message):
            replace(BASE, **changes).validate()
    with pytest.raises(BadInput, match=r"data\.cache_dir is '~nobody-of-that-name'"):
        cache_root(replace(BASE, cache_dir="~nobody-of-that-name"))
