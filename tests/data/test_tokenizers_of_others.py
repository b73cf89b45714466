"""Tokenizers of other projects: exact ids, what each file format is read as, what is refused."""

import io
import json
import os
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.tokenizers import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    SymbolTokenizer,
    byte_bpe,
    export_tokenizer,
    gguf_tokenizer,
    load_tokenizer,
    read_tokenizer,
    sentencepiece_of_lists,
    train_sentencepiece,
)
from gptjax.data.tokenizers.huggingface import byte_alphabet
from gptjax.data.tokenizers.splitting import SPLITTINGS, splitting
from gptjax.errors import BadInput

tokenizers = pytest.importorskip("tokenizers")

SAMPLE = [
    f"The {i}th line of this, isn't it? An unbreakable \U0001f642 sentence:\n\tx = {i * 37}\r\n"
    for i in range(150)
]
TEXTS = st.text(
    st.one_of(
        st.sampled_from(
            "abc theTHE's 0123\n\t\r .,!é\u0301ñ\U0001f642\u2581\u00a0\u2028\x00\ue00a\ue00f"
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)
END = "<|endoftext|>"


def trained(model, trainer, **parts) -> dict:
    """What a tiny vocabulary of the library looks like as JSON."""
    made = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    made.train_from_iterator(SAMPLE, trainer)
    return json.loads(made.to_str())["model"]


def write(folder, vocab=None, merges=None, **configs):
    """Files as transformers lays them out."""
    folder.mkdir(exist_ok=True)
    if vocab is not None:
        (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    if merges is not None:
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, value in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="module")
def byte_level() -> dict:
    """The vocabulary and merges of a tiny GPT-2."""
    from tokenizers import models, pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=[*byte_alphabet()], show_progress=False
    )
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = trained(models.BPE(), trainer, pre_tokenizer=split)
    return {"vocab": model["vocab"] | {END: len(model["vocab"])}, "merges": model["merges"]}


@pytest.fixture(scope="module")
def folders(byte_level, llama, tmp_path_factory) -> dict:
    """One folder for each layout, by its name."""
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    root = tmp_path_factory.mktemp("layouts")
    bert = {
        "normalizer": normalizers.BertNormalizer(),
        "pre_tokenizer": pre_tokenizers.BertPreTokenizer(),
    }
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = trainers.WordPieceTrainer(vocab_size=150, special_tokens=marks, show_progress=False)
    vocab = trained(models.WordPiece(unk_token="[UNK]"), words, **bert)["vocab"]
    (root / "bert").mkdir()
    text = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))
    (root / "bert" / "vocab.txt").write_text(text, encoding="utf-8")
    first = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    gpt1 = trained(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), first, **bert)
    qwen = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": END, "pad_token": END}
    made = {
        "bert": root / "bert",
        "gpt1": write(root / "gpt1", gpt1["vocab"], gpt1["merges"]),
        "gpt2": write(root / "gpt2", **byte_level),
        "qwen2": write(root / "qwen2", **byte_level, tokenizer_config=qwen),
    }
    export_tokenizer(read_tokenizer(made["gpt2"]), root / "json")
    export_tokenizer(ByteTokenizer(), root / "bytes")
    export_tokenizer(llama, root / "llama")
    return made | {name: root / name for name in ("json", "bytes", "llama")}


@pytest.fixture(scope="module")
def gpt2(folders) -> HuggingFaceTokenizer:
    return read_tokenizer(folders["gpt2"])


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_byte_level_bpe_is_exact(gpt2, text):
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    assert gpt2.token_bytes[ids].sum() == len(text.encode("utf-8"))
    assert gpt2.separator_id not in ids
    assert np.array_equal(gpt2.encode_many([text])[0], ids)


def test_names_of_special_tokens_are_text_unless_asked_for(gpt2):
    text = f"a{END}b"
    assert gpt2.exact and gpt2.decode(gpt2.encode(text)) == text
    assert list(gpt2.encode(text, special=True))[1] == gpt2.separator_id
    assert gpt2.decode([gpt2.separator_id, *gpt2.encode("it"), 10**9, -1]) == "it"
    with pytest.raises(BadInput, match="surrogate"):
        gpt2.encode_many(["a", "a\ud800"])


CLASSES = {
    "bert": "BertTokenizer",
    "gpt1": "OpenAIGPTTokenizer",
    "gpt2": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "json": "AutoTokenizer",
    "bytes": "AutoTokenizer",
    "llama": "AutoTokenizer",
}


@pytest.mark.parametrize("layout", CLASSES)
def test_ids_are_those_of_transformers(folders, layout):
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, CLASSES[layout]).from_pretrained(folders[layout])
    ours = read_tokenizer(folders[layout])

    @given(text=TEXTS)
    @settings(max_examples=100, deadline=None)
    def same(text):
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert list(ours.encode(text)) == ids

    same()


def test_every_layout_keeps_words(folders):
    for layout, folder in folders.items():
        made = read_tokenizer(folder)
        assert made.kind == "hf" and made.vocab_size == len(made.token_bytes)
        said = made.decode(made.encode("an unbreakable line"))
        assert said.strip() == "an unbreakable line", layout
        assert made.token_bytes[made.separator_id] == 0
        assert made.exact == (layout in ("gpt2", "json", "bytes"))
    for file in ("gpt2/merges.txt", "gpt2/vocab.json", "bert/vocab.txt", "json/tokenizer.json"):
        folder = folders[file.split("/")[0]]
        assert read_tokenizer(folder.parent / file).sha256 == read_tokenizer(folder).sha256


@pytest.mark.parametrize("layout", ["bert", "gpt1"])
def test_bytes_of_lossy_tokenizers_are_near(folders, layout):
    made, text = read_tokenizer(folders[layout]), "The line, an unbreakable one, isn't this. " * 20
    counted = made.token_bytes[made.encode(text)].sum()
    assert counted == pytest.approx(len(text), rel=0.1)


def test_saved_copy_is_the_same_and_damage_is_seen(gpt2, tmp_path):
    gpt2.save(tmp_path)
    for loaded in (load_tokenizer(tmp_path, gpt2.sha256), read_tokenizer(tmp_path)):
        assert (loaded.kind, loaded.sha256, loaded.special) == ("hf", gpt2.sha256, gpt2.special)
        assert np.array_equal(loaded.encode(SAMPLE[0]), gpt2.encode(SAMPLE[0]))
    with pytest.raises(BadInput, match="of another run"):
        load_tokenizer(tmp_path, "0" * 64)
    file = tmp_path / "huggingface.json"
    file.write_text(gpt2.text.replace('"ignore_merges": false', '"ignore_merges": true'))
    with pytest.raises(BadInput, match="of another run"):
        load_tokenizer(tmp_path)
    file.write_text(gpt2.text[:2000])
    with pytest.raises(BadInput, match=r"huggingface\.json describes no tokenizer"):
        load_tokenizer(tmp_path)
    file.unlink()
    with pytest.raises(BadInput, match="no whole tokenizer"):
        load_tokenizer(tmp_path)


def test_without_the_library_one_line_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BadInput, match=r"needs the package tokenizers: pip install 'gptjax\[hf\]'"):
        read_tokenizer(folders["gpt2"])


def test_the_separator_is_bos_then_eos_then_what_there_is(byte_level, folders, tmp_path):
    vocab, merges = byte_level["vocab"], byte_level["merges"]
    more = vocab | {"<s>": len(vocab), "</s>": len(vocab) + 1}
    eos = {"content": "</s>", "lstrip": False}
    for number, (config, model, expected) in enumerate(
        [
            ({"bos_token": "<s>", "eos_token": eos}, {}, "<s>"),
            ({"eos_token": eos}, {}, "</s>"),
            ({}, {"eos_token_id": [more["</s>"], 0]}, "</s>"),
            ({"bos_token": "<none>"}, {}, END),
            ({"bos_token": None, "unk_token": "<s>"}, {"bos_token_id": 10**7}, END),
        ]
    ):
        folder = write(tmp_path / f"{number}", more, merges, tokenizer_config=config, config=model)
        assert read_tokenizer(folder).separator_id == more[expected]
    bert, gpt1 = read_tokenizer(folders["bert"]), read_tokenizer(folders["gpt1"])
    assert bert.token(bert.separator_id) == "[SEP]" and gpt1.token(gpt1.separator_id) == "<unk>"
    with pytest.raises(BadInput, match="no token to separate documents"):
        read_tokenizer(write(tmp_path / "none", {t: vocab[t] for t in vocab if t != END}, merges))


def test_what_is_missing_or_damaged_is_one_line(byte_level, folders, llama, tmp_path, capfd):
    vocab, merges = byte_level["vocab"], byte_level["merges"]
    text = (folders["json"] / "tokenizer.json").read_text()
    strange = json.loads(text) | {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}
    far = json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, END: 1 << 31}, "merges": []}})
    twice = json.dumps({"model": {"type": "BPE", "vocab": {"b": 0, "a": 0, END: 1}, "merges": []}})
    files = {
        "empty.json": (b"", "is empty"),
        "cut.json": (text[:3000].encode(), r"cut\.json is no whole JSON file"),
        "list.json": (b"[]", "list.json holds no JSON object; give a tokenizer.json, vocab"),
        "twice.json": (twice.encode(), "has two tokens of one id: 'a' and 'b' are 0"),
        "other.json": (b'{"a": "b"}', "neither a tokenizer.json nor a vocabulary"),
        "deep.json": (b'{"a":' * 10**5, "no whole JSON file"),
        "strange.json": (json.dumps(strange).encode(), "describes no tokenizer: Token `b` out of"),
        "far.json": (far.encode(), "has 2147483649 as its number of ids"),
        "bare.json": (b'{"model": {}}', "is damaged: it has no vocabulary"),
        "words.txt": (b"the\nof\n", "has no line .UNK., so it is no vocabulary"),
        "merges.txt": (b"#version: 0.2\na b\n", "vocab.json is missing"),
        "a.model": (b"plain text", "damaged or no tokenizer"),
        "b.model": (b"\n\x05\n\x03abc", "was cut short"),
        "c.model": (llama.model.replace(b"\x96\x81th", b"\x96\xffth"), "not UTF-8"),
        "weights.bin": (pickle.dumps([1], 4), "is a pickle, which is never loaded"),
        "weights.pt": (b"PK\x03\x04abc", "is an archive"),
        "a.gguf": (b"GGUF\x03", "is a GGUF file"),
    }
    for name, (data, words) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadInput, match=words) as error:
            read_tokenizer(tmp_path / name)
        assert name.split(".")[0] in str(error.value) or name == "merges.txt"
    os.mkfifo(tmp_path / "pipe")
    for path, words in {"pipe": "is not a file", "no": "No such file", "": "no tokenizer:"}.items():
        with pytest.raises(BadInput, match=words):
            read_tokenizer(write(tmp_path / "bare") if not path else tmp_path / path)
    chinese = {"tokenizer_class": "CLIPTokenizer"}
    for number, (parts, words) in enumerate(
        [
            ({"vocab": vocab}, r"merges\.txt is missing"),
            ({"vocab": vocab, "merges": merges[:50]}, r"merges\.txt was cut short"),
            ({"vocab": vocab, "merges": [("a", "\u4e00")]}, "do not belong together"),
            ({"vocab": vocab, "merges": [*merges, ("a",)]}, "no pair in line"),
            ({"vocab": vocab, "merges": merges, "tokenizer_config": chinese}, "is of a CLIP"),
            ({"vocab": {"a": 0, END: 1}, "merges": []}, "is of a unknown|unknown kind"),
        ]
    ):
        with pytest.raises(BadInput, match=words):
            read_tokenizer(write(tmp_path / f"layout{number}", **parts))
    broken = write(tmp_path / "broken", vocab, merges)
    (broken / "tokenizer_config.json").write_text('{"bos_token": ')
    with pytest.raises(BadInput, match=r"tokenizer_config\.json is no whole JSON"):
        read_tokenizer(broken)
    assert capfd.readouterr() == ("", "")


def test_names_of_pre_tokenizers_cut_digits_their_way():
    tokens = [*byte_alphabet(), "12", "123", "1234", END]
    merges = ["1 2", "12 3", "123 4"]

    def pieces(pre: str) -> list[str]:
        made = byte_bpe(tokens, merges, {"eos": len(tokens) - 1}, pre=pre)
        assert made.decode(made.encode("1234 12")) == "1234 12"
        return [made.token(n) for n in made.encode("1234")]

    assert pieces("gpt-2") == ["1234"]
    assert pieces("smollm") == pieces("qwen2") == ["1", "2", "3", "4"]
    assert pieces("llama-bpe") == ["123", "4"]
    for name in SPLITTINGS:
        assert pieces(name)
    with pytest.raises(BadInput, match=r"'smolm'.* did you mean 'smollm'"):
        splitting("smolm")


def test_lists_of_byte_level_bpe(byte_level, gpt2):
    tokens = sorted(byte_level["vocab"], key=byte_level["vocab"].__getitem__)
    merges = [" ".join(pair) for pair in byte_level["merges"]]
    made = byte_bpe(tokens, merges)
    assert (made.sha256, made.special) == (gpt2.sha256, gpt2.special)
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*tokens, "<think>", "[PAD402]"],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [*[1] * (len(tokens) - 1), 3, 4, 5],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    read = gguf_tokenizer(fields)
    ids = list(read.encode("it<think>7"))
    assert len(tokens) in ids and read.decode(ids) == "it<think>7"
    assert read.token_bytes[len(tokens) :].tolist() == [7, 0] and read.separator_id == 400
    for changes, words in [
        ({"tokenizer.ggml.model": "rwkv"}, "of kind 'rwkv'"),
        ({"tokenizer.ggml.token_type": [1]}, "1 types for 403 tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 403}, "'a' twice: as 0 and as 1"),
        ({"tokenizer.ggml.merges": ["ab"]}, "a merge that is no pair: 'ab'"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "has no token 1000000"),
        ({"tokenizer.ggml.eos_token_id": "a"}, "eos_token_id is 'a', not of type int"),
        ({"tokenizer.ggml.pre": 7}, "pre is 7, not of type str"),
        ({"tokenizer.ggml.tokens": 7}, "tokens is 7, not a list"),
        ({"tokenizer.ggml.merges": [7]}, "merges has 7 as number 0, which is not of type str"),
        ({"tokenizer.ggml.token_type": ["a"]}, "token_type has 'a' as number 0, which is not"),
    ]:
        with pytest.raises(BadInput, match=words):
            gguf_tokenizer(fields | changes)
    with pytest.raises(BadInput, match=r"no tokenizer\.ggml\.merges"):
        gguf_tokenizer({k: v for k, v in fields.items() if not k.endswith("merges")})


@pytest.fixture(scope="module")
def llama() -> SentencePieceTokenizer:
    """A sentencepiece model as Llama's: BPE, bytes for what is unknown, a space before the text."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(SAMPLE).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue(), "bpe")


def test_lists_of_sentencepiece(llama, tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    pieces = sentencepiece_model_pb2.ModelProto.FromString(llama.model).pieces
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [p.piece for p in pieces],
        "tokenizer.ggml.scores": np.array([p.score for p in pieces], np.float32),
        "tokenizer.ggml.token_type": [p.type for p in pieces],
    }
    made = gguf_tokenizer(fields)
    assert made.special == {"bos": 1, "eos": 2, "unk": 0} and made.separator_id == 1

    @given(text=TEXTS)
    @settings(max_examples=100, deadline=None)
    def same(text):
        assert np.array_equal(made.encode(text), llama.encode(text))

    same()
    (tmp_path / "tokenizer.model").write_bytes(made.model)
    assert read_tokenizer(tmp_path).kind == "bpe"
    (tmp_path / "config.json").write_text('{"tokenizer_class": "CamembertTokenizer"}')
    with pytest.raises(BadInput, match=r"other ids .* give its tokenizer\.json"):
        read_tokenizer(tmp_path)
    assert made.kept == {"add_bos_token": True}
    said = {"tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": CHAT}
    assert gguf_tokenizer(fields | said).kept == {"add_bos_token": False, "chat_template": CHAT}
    plain = gguf_tokenizer(fields | {"tokenizer.ggml.add_space_prefix": False})
    assert len(plain.encode("x")) <= len(made.encode("x")) and plain.decode([]) == ""
    for change in ({"scores": [0.0]}, {"token_type": [9] * 360}, {"tokens": ["<unk>"] * 360}):
        with pytest.raises(BadInput):
            gguf_tokenizer(fields | {f"tokenizer.ggml.{k}": v for k, v in change.items()})
    with pytest.raises(BadInput, match="which is to be its bos"):
        sentencepiece_of_lists(["<unk>", "a"], [0.0, 0.0], [2, 1], {"unk": 0, "bos": 7})


@pytest.mark.parametrize("kind", ["bpe", "unigram", "llama"])
def test_exported_sentencepiece_has_the_same_ids(kind, llama, tmp_path):
    own = llama
    if kind != "llama":
        own = train_sentencepiece(kind, 400, SAMPLE, lambda line: None)
    export_tokenizer(own, tmp_path)
    written = read_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.model").exists() == (kind == "llama")
    assert (written.kind, written.separator_id) == ("hf", own.separator_id)

    @given(text=TEXTS)
    @settings(max_examples=150, deadline=None)
    def same(text):
        ids = own.encode(text)
        assert np.array_equal(written.encode(text), ids)
        assert written.decode(ids) == own.decode(ids)

    same()


def copied(source, folder):
    """What `folder/out` gets of a tokenizer that a run had in between; its config there."""
    made = read_tokenizer(source)
    made.save(folder / "run")
    saved = load_tokenizer(folder / "run", made.sha256)
    assert saved.kept == made.kept
    export_tokenizer(saved, folder / "out")
    return json.loads((folder / "out" / "tokenizer_config.json").read_text())


BOTH = {"add_bos_token": True, "add_eos_token": True}
CHAT = "{{ messages[0]['content'] }}\n\u00e9"


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("llama", BOTH | {"chat_template": CHAT, "tokenizer_class": "LlamaTokenizer"}),
        ("llama", {"add_bos_token": False, "tokenizer_class": "LlamaTokenizer"}),
        ("llama", {"tokenizer_class": "T5Tokenizer"}),
        ("gpt2", {"add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}),
        ("json", {"add_bos_token": True, "chat_template": CHAT}),
    ],
)
def test_what_its_source_puts_around_a_text_is_exported(
    layout, said, folders, llama, byte_level, tmp_path
):
    source = write(tmp_path / "source", tokenizer_config=said)
    if layout == "llama":
        (source / "tokenizer.model").write_bytes(llama.model)
    elif layout == "json":
        text = (folders["json"] / "tokenizer.json").read_bytes()
        (source / "tokenizer.json").write_bytes(text)
    else:
        write(source, **byte_level)
    config = copied(source, tmp_path)
    assert config.get("chat_template") == said.get("chat_template")
    ours = [read_tokenizer(folder).encode("This line") for folder in (source, tmp_path / "out")]
    assert ours[0].tolist() == ours[1].tolist()
    transformers = pytest.importorskip("transformers")
    theirs, again = (
        transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "out")
    )
    for texts in (("This line",), ("This line", "This")):
        assert again(*texts)["input_ids"] == theirs(*texts)["input_ids"]
    assert again.chat_template == theirs.chat_template
    inner = again("This line", add_special_tokens=False)["input_ids"]
    assert inner == ours[0].tolist()


def test_templates_of_chats_are_text_and_come_from_their_file_first(llama, tmp_path):
    both = BOTH | {"chat_template": "{{ 1 }}"}
    source = write(tmp_path / "source", tokenizer_config=both)
    (source / "tokenizer.model").write_bytes(llama.model)
    (source / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    assert copied(source, tmp_path)["chat_template"] == CHAT
    (source / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"chat_template\.jinja is no text"):
        read_tokenizer(source)
    (source / "chat_template.jinja").unlink()
    write(source, tokenizer_config={"add_bos_token": "yes", "chat_template": [{"name": "a"}]})
    assert read_tokenizer(source).kept == {}


def test_what_has_no_faithful_form_is_not_exported(llama, tmp_path):
    lists = [
        ["<unk>", "<s>", "a", "<mark>", "\u2581"],
        [0.0, 0.0, -1.0, 0.0, -2.0],
        [2, 3, 1, 4, 1],
    ]
    marked = sentencepiece_of_lists(*lists)
    with pytest.raises(BadInput, match=r"splits texts in a way that a tokenizer\.json cannot say"):
        export_tokenizer(marked, tmp_path)
    export_tokenizer(sentencepiece_of_lists(*lists, prefix_space=False), tmp_path)
    assert read_tokenizer(tmp_path).encode("a<mark>a").tolist() == [2, 3, 2]
    with pytest.raises(BadInput, match="symbols has no form that others read"):
        export_tokenizer(SymbolTokenizer(5), tmp_path)


@pytest.mark.skipif("GPTJAX_GPT2_VOCABULARY" not in os.environ, reason="names no folder")
def test_the_real_vocabulary_of_gpt2():
    made = read_tokenizer(os.environ["GPTJAX_GPT2_VOCABULARY"])
    assert (made.vocab_size, made.separator_id, made.exact) == (50257, 50256, True)
    assert made.encode("Hello world").tolist() == [15496, 995]
