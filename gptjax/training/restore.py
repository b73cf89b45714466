"""Reading one step of a checkpoint, with every proof it carries, onto any mesh."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.errors import BadInput, DamagedData
from gptjax.training import integrity
from gptjax.training.fingerprint import fingerprints, is_key, leaf_names

FORMAT = 1
RECORD = "record/record.json"
# orbax's own notes about a step, written around its commit; nothing here depends on them.
BOOKKEEPING = {"_CHECKPOINT_METADATA", "commit_success.txt"}


@dataclass(frozen=True)
class Restored:
    """One verified step."""

    step: int
    state: Any
    data_state: dict
    extra: dict


# ---------------------------------------------------------------- leaves


def _describe(leaf) -> dict:
    return {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}


def leaf_table(tree) -> dict[str, dict]:
    """Name to dtype and shape of every leaf."""
    names = leaf_names(tree)
    table = {n: _describe(leaf) for n, leaf in zip(names, jax.tree.leaves(tree), strict=True)}
    if len(table) != len(names):
        raise ValueError("two leaves of the state have one name")
    return table


def nested(names, leaves) -> dict:
    """Nested dicts by the parts of the names: what any orbax reader shows."""
    root: dict = {}
    for name, leaf in zip(names, leaves, strict=True):
        if 0 in leaf.shape:  # orbax refuses arrays without elements; they hold nothing
            continue
        *folders, last = name.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return root


def stored_form(leaf):
    """Typed random keys are stored as the words they are made of."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _sharding(leaf):
    return leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _restore_arg(leaf):
    import orbax.checkpoint as ocp

    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return ocp.ArrayRestoreArgs(
        sharding=_sharding(leaf), global_shape=data.shape, dtype=data.dtype, strict=True
    )


def _as_wanted(leaf, name: str, found: dict, entry: dict):
    """What orbax read, as the leaf of `like` wants it."""
    if 0 in leaf.shape:
        data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        array = jnp.zeros(data.shape, data.dtype)
    else:
        array = found
        for part in name.split("/"):
            array = array[part]
    if is_key(leaf):
        array = jax.random.wrap_key_data(array, impl=entry["impl"])
    return jax.device_put(array, _sharding(leaf))


# ---------------------------------------------------------------- orbax


def orbax_handler():
    """Few files (one set for all arrays) and no compression: the fastest of the forms measured."""
    import orbax.checkpoint as ocp

    handler = ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False),
        record=ocp.JsonCheckpointHandler(filename=RECORD.split("/")[1]),
    )
    finalize_items = handler.finalize

    def finalize(directory):
        """Everything is written and the rename comes next: the manifest goes with it."""
        finalize_items(directory)
        if jax.process_index() == 0:
            integrity.write_manifest(Path(directory), without=BOOKKEEPING)

    handler.finalize = finalize  # orbax finds the argument types by the class: no subclass
    return handler


def _read_arrays(folder: Path, like, entries: dict[str, dict]):
    import orbax.checkpoint as ocp

    names, leaves = leaf_names(like), jax.tree.leaves(like)
    item = nested(names, leaves)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    with ocp.Checkpointer(handler) as reader:
        found = reader.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(
                item=item,
                restore_args=jax.tree.map(_restore_arg, item),
                partial_restore=len(names) < len(entries),
            ),
        )
    arrays = [
        _as_wanted(leaf, name, found, entries[name])
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), arrays)


# ---------------------------------------------------------------- several hosts


def _from_first(text: str) -> str:
    """What process 0 says, on every process."""
    if jax.process_count() == 1:
        return text
    import numpy as np
    from jax.experimental import multihost_utils

    words = np.zeros(1024, np.uint8)
    raw = text.encode()[:1024]
    words[: len(raw)] = np.frombuffer(raw, np.uint8)
    words = np.asarray(multihost_utils.broadcast_one_to_all(words))
    return words.tobytes().rstrip(b"\0").decode(errors="ignore")


def everywhere(fine: bool) -> bool:
    """Whether all processes are fine."""
    if jax.process_count() == 1:
        return fine
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(fine)).all())


# ---------------------------------------------------------------- reading a step


def committed_steps(folder: Path) -> list[int]:
    """Steps that stand in a checkpoints folder, newest last, unverified."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def check_step_files(folder: Path, report: Callable[[str], None]) -> None:
    """Compare a step's files with its manifest; DamagedData names the first that differs.

    The manifest is part of the commit: a step without one is not what was written.
    """
    problem = ""
    if jax.process_index() == 0:
        try:
            if not folder.is_dir():
                problem = "it is a file and no folder"
            elif not integrity.has_manifest(folder):
                problem = f"{integrity.MANIFEST} is missing"
            else:
                for name in sorted(set(integrity.check_files(folder)) - BOOKKEEPING):
                    report(f"{folder / name} is not part of the checkpoint and is not read")
        except DamagedData as error:
            problem = str(error)
        except OSError as error:
            problem = f"its files cannot be read ({error.strerror})"
    problem = _from_first(problem)
    if problem:
        raise DamagedData(problem)


def load_step(
    folder: Path, like, report: Callable[[str], None], part: str | None = None
) -> Restored:
    """Read and verify one step, or only its subtree `part`.

    DamagedData when the step is not what was written; BadInput when it is another state.
    """
    check_step_files(folder, report)
    try:
        record = integrity.unseal(folder / RECORD)
    except DamagedData:
        raise
    except BadInput as error:
        raise DamagedData(str(error)) from error
    if record["format"] != FORMAT or record["step"] != int(folder.name):
        raise DamagedData(
            f"{RECORD} speaks of format {record['format']}, step {record['step']}; expected "
            f"format {FORMAT}, step {folder.name}"
        )
    entries = record["leaves"]
    if part is not None:
        like = {part: like}
        entries = {n: e for n, e in entries.items() if n == part or n.startswith(f"{part}/")}
    differences = integrity.leaf_differences(entries, leaf_table(like))
    if differences:
        more = f"; and {len(differences) - 3} more arrays" if len(differences) > 3 else ""
        raise BadInput(
            f"{folder} holds another state than this run (there: the checkpoint, here: the run): "
            f"{'; '.join(differences[:3])}{more}"
        )
    state = _read_arrays(folder, like, record["leaves"])
    found = fingerprints(state)
    wrong = [name for name, word in found.items() if word != entries[name]["fingerprint"]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DamagedData(f"the values of {', '.join(wrong[:3])}{more} are not those computed")
    if part is not None:
        state = state[part]
    return Restored(record["step"], state, record["data_state"], record["extra"])


def restore_params(
    folder: Path, like, step: int | None = None, report: Callable[[str], None] = print
):
    """The verified parameters alone, laid out as `like`, of one step or the newest good one.

    `folder` is a run's checkpoints folder or the run's folder. BadInput when there is none.
    """
    folder = Path(folder).absolute()
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    steps = committed_steps(folder)
    if not steps:
        raise BadInput(f"{folder} holds no checkpoint")
    if step is not None and step not in steps:
        raise BadInput(f"{folder} holds no step {step}; it holds {', '.join(map(str, steps))}")
    wanted = [step] if step is not None else steps[::-1]
    for candidate in wanted:
        try:
            return load_step(folder / str(candidate), like, report, part="params").state
        except DamagedData as error:
            report(f"checkpoint {folder / str(candidate)} is damaged: {error}")
    raise DamagedData(f"no good checkpoint in {folder}: all of {wanted} are damaged")
