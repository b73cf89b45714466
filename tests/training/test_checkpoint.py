"""Checkpoints: exact on any mesh, donation, retention, states that differ, disks that refuse."""

import contextlib
import gc
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput
from gptjax.training import checkpoint as checkpoint_module
from gptjax.training.checkpoint import Checkpointer, restore_params
from gptjax.training.fingerprint import array_fingerprint, fingerprints, is_key, leaf_names


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    rng: Any


SPECS = {
    "embed": P("data", None),
    "layer": {"w": P("data", "tensor"), "scale": P(None), "flag": P(("data", "tensor"))},
}
OPTIMIZER = optax.adamw(1e-3)


def mesh_of(data, tensor):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    axes = (AxisType.Explicit, AxisType.Explicit)
    return jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=axes)


def make_state(mesh, seed=0) -> State:
    rng = np.random.default_rng(seed)
    params = {
        "embed": rng.normal(size=(24, 13)).astype(np.float32),
        "layer": {
            "w": rng.normal(size=(16, 8, 3)).astype(jnp.bfloat16),
            "scale": rng.normal(size=(7,)).astype(np.float32),
            "flag": rng.normal(size=(16,)).astype(np.float16),
        },
    }
    params = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), params, SPECS)
    whole = NamedSharding(mesh, P())
    opt_state = jax.tree.map(
        lambda x: x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, whole),
        OPTIMIZER.init(params),
    )
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(3, x.dtype), opt_state)
    step, key = jax.device_put((jnp.int32(seed), jax.random.key(seed)), whole)
    return State(step, params, opt_state, key)


def like_of(state, mesh=None):
    def leaf(x):
        sharding = NamedSharding(mesh, x.sharding.spec) if mesh is not None else x.sharding
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, state)


def bits(x):
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def same(one, other) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        a.dtype == b.dtype and bits(a).tobytes() == bits(b).tobytes() for a, b in pairs
    )


@pytest.fixture
def open_checkpointer():
    with contextlib.ExitStack() as stack:

        def make(folder, **options):
            made = Checkpointer(folder, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One saved step on mesh (4, 2), made under the mesh as a loop does."""
    folder = tmp_path_factory.mktemp("saved")
    mesh = mesh_of(4, 2)
    state = make_state(mesh, seed=5)
    checkpointer = Checkpointer(folder)
    with jax.set_mesh(mesh):
        checkpointer.save(5, state, {"position": [1, 2]}, {"tokens": 0.1})
    checkpointer.close()
    return folder, state


# ---------------------------------------------------------------- fingerprints


def test_fingerprint_is_the_same_on_every_mesh():
    array = np.random.default_rng(0).normal(size=(16, 8, 13)).astype(np.float32)
    words = {int(array_fingerprint(jnp.asarray(array)))}
    for shape in ((8, 1), (2, 4), (1, 8)):
        mesh = mesh_of(*shape)
        for spec in (P(), P("data", "tensor"), P(("data", "tensor"))):
            placed = jax.device_put(array, NamedSharding(mesh, spec))
            words.add(int(array_fingerprint(placed)))
            with jax.set_mesh(mesh):
                words.add(int(array_fingerprint(placed)))
    assert len(words) == 1


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint8", "int4", "bool"]
)
def test_fingerprint_sees_every_flipped_bit(dtype):
    rng = np.random.default_rng(1)
    array = np.asarray(jnp.asarray(rng.integers(0, 2, size=(5, 7))).astype(dtype))
    before = int(array_fingerprint(jnp.asarray(array)))
    width = {"bool": 1, "int4": 4}.get(dtype, 8 * array.itemsize)
    for _ in range(20):
        raw = bytearray(array.tobytes())
        element, bit = int(rng.integers(array.size)), int(rng.integers(width))
        raw[element * array.itemsize + bit // 8] ^= 1 << bit % 8
        changed = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
        assert int(array_fingerprint(jnp.asarray(changed))) != before
    assert int(array_fingerprint(jnp.asarray(array))) == before


def test_fingerprint_sees_order_shape_and_negative_zero():
    line = jnp.arange(35, dtype=jnp.float32)
    words = [line, line[::-1], line.reshape(5, 7).T, -line, line * 0, -line * 0]
    assert len({int(array_fingerprint(x)) for x in words}) == len(words)
    assert fingerprints({"key": jax.random.key(1)}) != fingerprints({"key": jax.random.key(2)})
    assert fingerprints({"empty": jnp.zeros((0, 3))}) == {"empty": "00000000"}


def test_leaf_names_are_words():
    names = leaf_names(make_state(mesh_of(8, 1)))
    assert names[:3] == ["step", "params/embed", "params/layer/flag"]
    assert "opt_state/0/mu/layer/w" in names and names[-1] == "rng"


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (8, 1), (1, 8)])
def test_restore_is_exact_on_another_mesh(saved, shape):
    folder, state = saved
    mesh = mesh_of(*shape)
    like = like_of(state, mesh)
    with jax.set_mesh(mesh):
        restored = Checkpointer(folder).restore(like)
    assert restored.step == 5
    assert restored.data_state == {"position": [1, 2]} and restored.extra == {"tokens": 0.1}
    assert same(restored.state, state)
    assert isinstance(restored.state, State)
    for leaf, wanted in zip(jax.tree.leaves(restored.state), jax.tree.leaves(like), strict=True):
        assert leaf.sharding == wanted.sharding
    key = jax.random.fold_in(restored.state.rng, 1)
    assert np.array_equal(bits(key), bits(jax.random.fold_in(state.rng, 1)))


def test_restore_onto_one_device(saved):
    folder, state = saved
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    restored = Checkpointer(folder).restore(like)
    assert same(restored.state, state)


def test_params_alone(saved, tmp_path):
    folder, state = saved
    mesh = mesh_of(2, 4)
    params = restore_params(folder, like_of(state, mesh).params)
    assert same(params, state.params)
    assert same(restore_params(folder, like_of(state, mesh).params, step=5), state.params)
    with pytest.raises(BadInput, match="holds no step 6; it holds 5"):
        restore_params(folder, like_of(state).params, step=6)
    with pytest.raises(BadInput, match="no checkpoint"):
        restore_params(tmp_path, like_of(state).params)
    wrong = like_of(state).params
    wrong["embed"] = jax.ShapeDtypeStruct((24, 11), jnp.float32)
    with pytest.raises(BadInput, match=r"params/embed is float32\[24,13\] there"):
        restore_params(folder, wrong)


def test_an_empty_folder_restores_nothing(tmp_path):
    state = make_state(mesh_of(8, 1))
    assert Checkpointer(tmp_path / "none").restore(like_of(state)) is None
    assert not (tmp_path / "none").exists()


def test_arrays_without_elements_and_plain_numbers(tmp_path, open_checkpointer):
    state = {"none": jnp.zeros((0, 3)), "int4": jnp.arange(7).astype(jnp.int4), "yes": np.ones(3)}
    checkpointer = open_checkpointer(tmp_path)
    checkpointer.save(1, state, {}, {})
    like = {k: jax.ShapeDtypeStruct(v.shape, jnp.asarray(v).dtype) for k, v in state.items()}
    restored = checkpointer.restore(like).state
    assert restored["none"].shape == (0, 3) and restored["int4"].dtype == jnp.int4
    assert restored["yes"].tolist() == [1, 1, 1]


def test_donation_right_after_save(tmp_path, open_checkpointer):
    mesh = mesh_of(2, 4)
    spec = NamedSharding(mesh, P("data", "tensor"))
    wipe = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    checkpointer = open_checkpointer(tmp_path, keep=0)
    for step in range(3):
        values = [np.full((512, 1024), step * 10 + i, np.float32) for i in range(4)]
        tree = jax.device_put({str(i): v for i, v in enumerate(values)}, spec)
        checkpointer.save(step, tree, {}, {})
        for _ in range(3):
            tree = wipe(tree)
    checkpointer.wait()
    like = {str(i): jax.ShapeDtypeStruct((512, 1024), jnp.float32, sharding=spec) for i in range(4)}
    restored = checkpointer.restore(like)  # the fingerprints were taken before the donation
    assert restored.step == 2 and (np.asarray(restored.state["3"]) == 23).all()


def test_saving_a_step_again_changes_nothing(tmp_path, open_checkpointer):
    mesh = mesh_of(8, 1)
    checkpointer = open_checkpointer(tmp_path)
    checkpointer.save(3, make_state(mesh, 1), {}, {"which": 1})
    checkpointer.save(3, make_state(mesh, 2), {}, {"which": 2})
    again = open_checkpointer(tmp_path)
    again.save(3, make_state(mesh, 2), {}, {"which": 3})
    again.wait()
    assert again.restore(like_of(make_state(mesh))).extra == {"which": 1}


@pytest.mark.parametrize(
    "keep, forever, left", [(2, (), [4, 5]), (1, (2, 4), [2, 4, 5]), (0, (), [1, 2, 3, 4, 5])]
)
def test_retention(tmp_path, open_checkpointer, keep, forever, left):
    checkpointer = open_checkpointer(tmp_path, keep=keep, keep_steps=forever)
    for step in range(1, 6):
        checkpointer.save(step, {"x": jnp.arange(7)}, {}, {})
    checkpointer.wait()
    assert checkpointer.steps() == left
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(map(str, left))


# ---------------------------------------------------------------- another state


def changed_like(state, what):
    like = like_of(state)
    if what == "dtype":
        w = like.params["layer"]["w"]
        like.params["layer"]["w"] = jax.ShapeDtypeStruct(w.shape, jnp.float32, sharding=w.sharding)
    elif what == "shape":
        like.params["layer"]["scale"] = jax.ShapeDtypeStruct((11,), jnp.float32)
    elif what == "missing":
        del like.params["embed"]
    elif what == "added":
        like.params["bias"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    elif what == "optimizer":
        opt_state = jax.eval_shape(optax.sgd(1e-3, momentum=0.9).init, like.params)
        like = like._replace(opt_state=opt_state)
    return like


@pytest.mark.parametrize(
    "what, words",
    [
        ("dtype", "params/layer/w is bfloat16[16,8,3] there and float32[16,8,3] here"),
        ("shape", "params/layer/scale is float32[7] there and float32[11] here"),
        ("missing", "params/embed is float32[24,13] there and absent here"),
        ("added", "params/bias is float32[5] here and absent there"),
        ("optimizer", "opt_state/0/trace/embed is float32[24,13] here and absent there"),
    ],
)
def test_another_state_is_refused_by_leaf(saved, what, words):
    folder, state = saved
    lines = []
    with pytest.raises(BadInput) as caught:
        Checkpointer(folder, report=lines.append).restore(changed_like(state, what))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert lines == []


# ---------------------------------------------------------------- disks that refuse


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize("foreseen", [True, False])
def test_full_disk_keeps_the_last_step(small_disk, monkeypatch, foreseen):
    """A save that cannot fit is refused before it begins; one that fails on its way is as quiet."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    checkpointer = Checkpointer(small_disk / "checkpoints", keep=0)
    state = {str(i): jnp.arange(7_507, dtype=jnp.float32) for i in range(40)}
    checkpointer.save(1, state, {}, {})
    checkpointer.save(2, state, {}, {})
    words = r"step 3 could not be written.*full.*loadable: 1, 2"
    with monkeypatch.context() as patch:
        if not foreseen:
            patch.setattr(Checkpointer, "_check_room", lambda *_: None)
            words = r"step 3 could not be written.*is full; steps that stay loadable: 1, 2"
        with pytest.raises(BadInput, match=words) as refused:
            checkpointer.save(3, state, {}, {})
            checkpointer.wait()
    assert ("1,201,120 bytes to write" in str(refused.value)) == foreseen
    assert sorted(p.name for p in checkpointer.folder.iterdir()) == ["1", "2"]
    like = jax.eval_shape(lambda: state)
    assert Checkpointer(checkpointer.folder).restore(like).step == 2
    # Room again: the same process goes on saving.
    shutil.rmtree(small_disk / "checkpoints" / "1")
    checkpointer.save(3, state, {}, {})
    checkpointer.close()
    assert Checkpointer(checkpointer.folder).restore(like).step == 3
    gc.collect()
    assert told == []


def test_only_closed_loops_are_passed_over(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    for _ in range(2):
        checkpoint_module._pass_over_closed_loops()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("other"), OSError(5, "x")):
        sys.unraisablehook(SimpleNamespace(exc_value=error, object=None))
    assert [str(u.exc_value) for u in told] == ["other", "[Errno 5] x"]


def test_read_only_disk(small_disk):
    folder = small_disk / "checkpoints"
    state = {"x": jnp.arange(7)}
    checkpointer = Checkpointer(folder)
    checkpointer.save(1, state, {}, {})
    checkpointer.wait()
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    if subprocess.run(remount, capture_output=True).returncode:
        pytest.skip("cannot make the disk read-only")
    with pytest.raises(BadInput, match="read-only"):
        checkpointer.save(2, state, {}, {})
        checkpointer.wait()
    checkpointer.close()
    like = {"x": jax.ShapeDtypeStruct((7,), jnp.int32)}
    assert Checkpointer(folder).restore(like).step == 1
    with pytest.raises(BadInput, match="read-only"):
        Checkpointer(small_disk / "others").save(1, state, {}, {})


@pytest.mark.parametrize("late", [False, True])
def test_a_failure_in_the_background_is_raised_once(tmp_path, monkeypatch, late):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"x": jnp.arange(7)}, {}, {})
    checkpointer.wait()

    def refuse(folder, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.integrity, "write_manifest", refuse)
    checkpointer.save(2, {"x": jnp.arange(7)}, {}, {})
    with pytest.raises(BadInput, match=r"step 2 could not be written.*full"):
        checkpointer.save(3, {"x": jnp.arange(7)}, {}, {}) if late else checkpointer.wait()
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]
    checkpointer.save(2, {"x": jnp.arange(7)}, {}, {})
    checkpointer.close()
    assert checkpointer.steps() == [1, 2]
