"""A finished run, loaded: what it says and what it scores are what the run itself left."""

import dataclasses

import pytest

import gptjax
from gptjax.errors import BadInput
from gptjax.parallel.mesh import MeshConfig
from tests.conftest import changed


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    experiment = changed(
        tiny,
        train={"steps": 6, "checkpoint_every": 3, "sample_prompt": "def "},
        data={"tokenizer": "bpe", "vocab_size": 320},
        model={"vocab_size": 320, "num_layers": 1},
    )
    return gptjax.fit(experiment, tmp_path_factory.mktemp("trained") / "run")


def test_a_loaded_run_is_the_run(run):
    trained = gptjax.load(run.workdir)
    assert trained.config.vocab_size == 320 and trained.tokenizer.kind == "bpe"
    parameters = run.figures["parameters"] / 1e3
    assert repr(trained) == (
        f"<Trained tiny: {parameters:.3g}k parameters, next_token, from {run.workdir}>"
    )
    assert trained.generate("def ", 8) == run.sample
    greedy = trained.generate("def ", 4, temperature=0)
    assert greedy.startswith("def ") and greedy == trained.generate("def ", 4, temperature=0)
    figures = trained.evaluate()
    for name in ("validation_loss", "bits_per_byte"):
        assert figures[name] == pytest.approx(run.figures[name], rel=1e-6)
    earlier = gptjax.load(run.workdir, step=3).evaluate(batches=1)
    assert earlier["validation_loss"] != figures["validation_loss"]


def test_on_a_mesh_and_on_other_text_with_its_own_tokenizer(run, tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"x = {i} if y else None\n" * 40)
    trained = gptjax.load(run.workdir, mesh=MeshConfig(data=2, fsdp=2))
    assert trained.mesh.size == 4
    own = trained.experiment.data
    other = dataclasses.replace(own, files=(f"{tmp_path}/*.txt",), tokenizer="bytes")
    assert trained.evaluate()["validation_loss"] == pytest.approx(
        run.figures["validation_loss"], rel=1e-4
    )
    assert trained.evaluate(data=other)["bits_per_byte"] > 0


def test_what_cannot_be_loaded_or_asked_for_is_one_line(run, tmp_path):
    with pytest.raises(BadInput, match="holds no run"):
        gptjax.load(tmp_path)
    with pytest.raises(BadInput, match="holds no step 5; it holds"):
        gptjax.load(run.workdir, step=5)
    trained = gptjax.load(run.workdir)
    with pytest.raises(BadInput, match="sample_temperature is -1"):
        trained.generate(temperature=-1)
    with pytest.raises(BadInput, match=r"sequence_length = 64 is longer than model\.context"):
        trained.evaluate(data=dataclasses.replace(trained.experiment.data, sequence_length=64))


@pytest.mark.parametrize("workdir", [3, None, "a\0b"])
def test_a_place_that_is_no_path_is_one_line(workdir):
    with pytest.raises(BadInput, match="the run's folder is"):
        gptjax.load(workdir)


def test_a_sweeps_folder_points_to_its_points(tmp_path):
    (tmp_path / "points" / "a-1").mkdir(parents=True)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(BadInput, match=r"holds a sweep: give a point's folder.*points/a-1$"):
        gptjax.load(tmp_path)
    with pytest.raises(BadInput, match="mesh is 3; give a MeshConfig"):
        gptjax.load(tmp_path, mesh=3)
