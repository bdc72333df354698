"""Checkpoints by orbax: the train state and the position in the data, saved together or not at all."""

import asyncio
import shutil
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from clip_jax.distributed import processes
from clip_jax.training.digests import DIGESTS, DigestsAhead, find_damage, write_digests
from clip_jax.training.state import TrainState
from input_pipeline.storage import flush


class CheckpointError(OSError):
    """A checkpoint could not be written or read; the message says which, where and what to do."""


class _DamagedError(ValueError):
    """A checkpoint is not what was written; all processes know."""


class _DigestedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The folder of an unfinished save: it gets its digests, then its name. Only the first process finalizes."""

    _ahead: DigestsAhead | None = None

    async def create(self) -> Any:
        unfinished = await super().create()
        if self.get_final().name.isdigit():
            self._ahead = DigestsAhead(Path(unfinished))
            weakref.finalize(self, self._ahead.end)  # of a save that fails
        return unfinished

    async def finalize(self) -> None:
        unfinished, final = self.get(), self.get_final()
        if not final.name.isdigit():  # a part of a checkpoint
            await super().finalize()
            return
        # Of a folder that keeps its name Orbax completes all files and renames nothing.
        complete = ocp.path.atomicity.CommitFileTemporaryPath.from_final(
            unfinished, checkpoint_metadata_store=self._checkpoint_metadata_store
        )
        await complete.finalize()
        await asyncio.to_thread(write_digests, Path(unfinished), int(final.name), self._ahead)
        await asyncio.to_thread(unfinished.rename, final)
        await asyncio.to_thread(flush, Path(final.parent))


def saved_steps(workdir: Path) -> Sequence[int]:
    """Steps with a committed checkpoint, oldest first; an unfinished save is not among them. Creates nothing."""
    directory = workdir.absolute() / "checkpoints"
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []


class Checkpointer:
    """Asynchronous, atomic saves under workdir/checkpoints, a folder that all processes of a run share.

    All processes of a run make one and call the same methods; the first one lists the folder for all.

    keep: number of the newest checkpoints that are kept, at least 1.
    """

    def __init__(self, workdir: Path, keep: int = 2):
        self.directory = workdir.absolute() / "checkpoints"  # orbax fails late, in a thread, on a relative path
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, temporary_path_class=_DigestedPath
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> Sequence[int]:
        """See `saved_steps`; the same on all processes."""
        return processes.from_first("the list of checkpoints", lambda: list(saved_steps(self.directory.parent)))

    def save(self, step: int, state: TrainState, data_state: dict[str, Any]) -> None:
        """Starts to save in the background, unless the step is saved. Raises CheckpointError of an earlier save."""
        if step in self.steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state))
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, target: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is what was written, onto the target's shardings; None where there is none.

        Raises CheckpointError when there are checkpoints and none of them can be read. One of several processes does
        not know which one the others can read: there the newest that agrees with its digests must be readable.
        """
        failures = []
        for step in reversed(self.steps()):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore())
            try:
                self._check_digests(step)
                restored = self._manager.restore(step, args=args)
                _check_position(step, restored.data)
            except Exception as error:  # a damaged checkpoint must not hide the good one before it
                if processes.process_count() > 1 and not isinstance(error, _DamagedError):
                    raise CheckpointError(
                        f"checkpoint {self.directory}/{step} cannot be read ({_first_line(error)}): move it out of the "
                        "folder, and the run goes on from the one before it"
                    ) from error
                failures.append(f"step {step}: {_first_line(error)}")
                if processes.is_first():
                    logging.warning("checkpoint %s/%d cannot be read: %s", self.directory, step, _first_line(error))
                continue
            return restored.state, restored.data
        if failures:
            raise CheckpointError(
                f"no checkpoint in {self.directory} can be read ({'; '.join(failures)}): "
                "restore the folder from a copy, or start again in another --workdir"
            )
        return None

    def move_newer_than(self, step: int) -> None:
        """Moves the checkpoints newer than `step`, which could not be read, to workdir/unreadable_STEP.

        Removes what killed saves left: only for the owner of the workdir.
        """
        newer_steps = [s for s in self.steps() if s > step]
        for unfinished in self.directory.glob("*.orbax-checkpoint-tmp") if processes.is_first() else []:
            shutil.rmtree(unfinished)
        for newer in newer_steps if processes.is_first() else []:
            target = self.directory.parent / f"unreadable_{newer}"
            while target.exists():
                target = target.with_name(f"{target.name}_again")
            (self.directory / str(newer)).rename(target)
            print(f"clip-jax: the checkpoint of step {newer}, which cannot be read, is now {target}", file=sys.stderr)
        processes.gather("unreadable checkpoints moved", None)
        self._manager.reload()

    def wait(self) -> None:
        """Returns when all started saves are on the disk. Raises CheckpointError when one failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Stops the background work; call `wait` first to learn whether a save failed."""
        if processes.is_ending():  # a save in progress would wait for the other processes
            return
        try:
            self._manager.close()
        except Exception as error:  # must not hide the error that ended the run
            logging.warning("%s", self._failed(error))

    def _check_digests(self, step: int) -> None:
        """Raises _DamagedError on all processes; the first one reads the files, the others wait."""
        folder = self.directory / str(step)
        damage = processes.from_first(f"the digests of checkpoint {step}", lambda: find_damage(folder, step))
        if damage:
            raise _DamagedError(damage)
        if damage is None and processes.is_first():
            print(
                f"clip-jax: checkpoint {folder} carries no {DIGESTS}, as those of earlier versions: what it "
                "holds cannot be verified",
                file=sys.stderr,
            )

    def _failed(self, error: Exception) -> CheckpointError:
        kept = saved_steps(self.directory.parent)  # without the other processes, which may have ended
        return CheckpointError(
            f"could not save a checkpoint to {self.directory}: {_first_line(error)}. "
            f"The newest complete checkpoint is {'step ' + str(kept[-1]) if kept else 'none'}; "
            "free space or repair the folder, then run the same command again"
        )


def _check_position(step: int, data_state: Any) -> None:
    """Raises _DamagedError for a position in the data of another step; each step takes one batch."""
    if not isinstance(data_state, dict) or data_state.get("next_batch", step) != step:
        found = data_state.get("next_batch") if isinstance(data_state, dict) else data_state
        raise _DamagedError(f"its position in the data is {found!r:.60}, not batch {step}")


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or repr(error)).splitlines()[0].split(" [tensorstore_spec=")[0]
    return line if len(line) <= 300 else f"{line[:90]} ... {line[-200:]}"  # the cause is at the end
