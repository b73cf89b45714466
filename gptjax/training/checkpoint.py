"""Checkpoints that prove themselves: orbax writes the arrays, and every step carries its proof.

A step is one folder, committed by one rename:
    state/       the arrays, written by orbax in the background
    record/      a sealed JSON file: leaf names, dtypes, shapes, fingerprints, data state, extra
    files.json   size and sha256 of every file, written before the commit, completed after it
orbax restores flipped bits and other dtypes without a word, so neither is left to it here.
"""

import os
import shutil
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import jax.numpy as jnp

from gptjax.errors import DamagedData, Trouble
from gptjax.training import integrity
from gptjax.training.fingerprint import fingerprints, is_key, leaf_names
from gptjax.training.restore import (
    FORMAT,
    Restored,
    check_step_files,
    committed_steps,
    everywhere,
    leaf_table,
    load_step,
    nested,
    orbax_handler,
    restore_params,
    stored_form,
)
from gptjax.training.workdir import storage_errors, storage_failure

_UNFINISHED = ".orbax-checkpoint-tmp"  # orbax writes here until the rename
_DELETED = ".deleted"  # renamed before it is removed: a kill never leaves half a step
_DAMAGED = ".damaged"  # set aside when the step is written anew

__all__ = ["Checkpointer", "Restored", "restore_params"]


class Checkpointer:
    """Saves in the background, keeps the newest steps, restores the newest good one.

    It keeps the newest `keep` steps (0: all) and for ever those in `keep_steps`. One living
    process per folder may save; all processes of a run call every method.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        keep_steps: Collection[int] = (),
        report: Callable[[str], None] = print,
    ):
        self.folder = Path(folder).absolute()
        self.keep = keep
        self.keep_steps = frozenset(keep_steps)
        self._first = jax.process_index() == 0
        self._report = report if self._first else lambda line: None
        self._writer = None
        self._background: threading.Thread | None = None
        self._failure: tuple[int, BaseException] | None = None
        self._good: set[int] = set()
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Committed steps, newest last, unverified."""
        return committed_steps(self.folder)

    def save(self, step: int, state, data_state: dict, extra: dict) -> None:
        """Save in the background; the caller may donate the state's buffers on return.

        BadInput when this save or the one before could not be written; older steps stay whole.
        A step that exists and is good stays as it is.
        """
        self.wait()
        with storage_errors(f"write to {self.folder}"):
            if self._writer is None:
                self._open()
            if step in self.steps():
                if self._is_good(step):
                    return
                self._set_aside(step)
        import orbax.checkpoint as ocp

        state = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), state)
        record = self._record(step, state, data_state, extra)
        stored = nested(leaf_names(state), map(stored_form, jax.tree.leaves(state)))
        self._check_room(step, stored)
        try:
            self._writer.save(
                self.folder / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(stored), record=ocp.args.JsonSave(record)
                ),
            )
        except Exception as error:
            self._failure = (step, error)
            self._raise_failure()
        # Not a daemon: the interpreter waits for the commit when the program ends.
        self._background = threading.Thread(
            target=self._finish, args=(step,), name=f"checkpoint-{step}"
        )
        self._background.start()

    def wait(self) -> None:
        """Until everything is committed and proven; raises what a background save ran into."""
        if self._background is not None:
            self._background.join()
            self._background = None
        self._raise_failure()

    def close(self) -> None:
        """Wait and let go of the threads."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                writer, self._writer = self._writer, None
                writer.close()

    def restore(self, like) -> Restored | None:
        """The newest good step on the layout of `like` (shapes, dtypes, shardings).

        Damaged steps are reported and passed over. None when there is no step at all; BadInput
        when none is good, or when a good one holds another state (leaves, dtypes, shapes).
        """
        self.wait()
        if self.folder.is_dir():
            for path in sorted(self.folder.glob(f"*{_UNFINISHED}*")):
                self._report(f"the save in {path} was cut off; it is passed over")
        steps = self.steps()
        for step in reversed(steps):
            folder = self.folder / str(step)
            try:
                restored = load_step(folder, like, self._report)
            except DamagedData as error:
                self._damaged.add(step)
                self._report(f"checkpoint {folder} is damaged: {error}")
                continue
            self._good.add(step)
            if self._damaged:
                self._report(f"going on from step {step}, the newest good checkpoint")
            return restored
        if steps:
            raise DamagedData(
                f"no good checkpoint in {self.folder}: all of {steps} are damaged; move the "
                "folder away to start anew"
            )
        return None

    # ------------------------------------------------------------ the parts of a save

    def _open(self) -> None:
        """The first save of this process: clear away what earlier ones left."""
        import orbax.checkpoint as ocp

        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        for step in self._damaged & set(self.steps()):
            self._set_aside(step)
        _pass_over_closed_loops()
        self._writer = ocp.AsyncCheckpointer(
            orbax_handler(),
            # Made at once, so that a disk that takes no folder says so in `save`.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        )

    def _clear(self) -> None:
        if self._first:
            for pattern in (f"*{_UNFINISHED}*", f".*{_DELETED}"):
                for path in self.folder.glob(pattern):
                    _remove(path)

    def _check_room(self, step: int, stored) -> None:
        """Refuse a save that cannot fit, before anything of it is written."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(stored))
        disk = shutil.disk_usage(self.folder)
        # Some network file systems know no sizes and say 0 of 0.
        if everywhere(disk.free >= needed or not disk.total):
            return
        self._refuse(step, f"the disk is full ({needed:,} bytes to write, {disk.free:,} free)")

    def _set_aside(self, step: int) -> None:
        """Keep a damaged step for the curious, out of the way of the new one."""
        if self._first:
            aside = self.folder / f"{step}{_DAMAGED}"
            _remove(aside)
            os.rename(self.folder / str(step), aside)
            self._report(f"the damaged checkpoint of step {step} is kept as {aside}")
        self._damaged.discard(step)
        self._good.discard(step)

    def _is_good(self, step: int) -> bool:
        folder = self.folder / str(step)
        if step not in self._good:
            try:
                check_step_files(folder, self._report)
                self._good.add(step)
            except DamagedData as error:
                self._report(f"checkpoint {folder} is damaged: {error}")
        return step in self._good

    def _record(self, step: int, state, data_state: dict, extra: dict) -> dict:
        leaves = leaf_table(state)
        for name, word in fingerprints(state).items():
            leaves[name]["fingerprint"] = word
        for name, leaf in zip(leaf_names(state), jax.tree.leaves(state), strict=True):
            if is_key(leaf):
                leaves[name]["impl"] = str(jax.random.key_impl(leaf))
        return integrity.seal(
            {
                "format": FORMAT,
                "step": step,
                "leaves": leaves,
                "data_state": data_state,
                "extra": extra,
            }
        )

    def _finish(self, step: int) -> None:
        """In the background: the commit, the rest of the manifest, then older steps may go."""
        try:
            self._writer.wait_until_finished()
            if self._first:
                integrity.write_manifest(self.folder / str(step))
                self._good.add(step)
                self._prune()
        except BaseException as error:
            self._failure = (step, error)

    def _prune(self) -> None:
        steps = self.steps()
        newest = steps[-self.keep :]  # all of them for 0
        for step in steps:
            if step not in newest and step not in self.keep_steps:
                gone = self.folder / f".{step}{_DELETED}"
                os.rename(self.folder / str(step), gone)
                _remove(gone)

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        (step, error), self._failure = self._failure, None
        self._clear()  # a part of a step only takes room
        reason = storage_failure(error)
        if reason is None:
            raise RuntimeError(f"the checkpoint of step {step} was not written") from error
        self._refuse(step, reason, error)

    def _refuse(self, step: int, reason: str, error: BaseException | None = None):
        left = ", ".join(map(str, self.steps())) or "none"
        raise Trouble(
            f"the checkpoint of step {step} could not be written to {self.folder}: {reason}; "
            f"steps that stay loadable: {left}"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _pass_over_closed_loops() -> None:
    """Keep what a failed write leaves behind from being printed; the failure itself is raised.

    orbax closes its event loop at the first array that cannot be written. The others are still on
    their way: tensorstore's threads find the loop closed, and each prints a traceback by
    `sys.unraisablehook`. Everything else goes to the hook that stood there before.
    """
    before = sys.unraisablehook
    if getattr(before, "passes_over_closed_loops", False):
        return

    def hook(unraisable) -> None:
        value = unraisable.exc_value
        if not (isinstance(value, RuntimeError) and str(value) == "Event loop is closed"):
            before(unraisable)

    hook.passes_over_closed_loops = True
    sys.unraisablehook = hook
