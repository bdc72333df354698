"""Checkpoints by orbax: the train state and the position in the data, saved together or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from clip_jax.distributed import processes
from clip_jax.training.state import TrainState


class CheckpointError(OSError):
    """A checkpoint could not be written or read; the message says which, where and what to do."""


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
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
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
        """The newest checkpoint that can be read, onto the target's shardings; None where there is none.

        Raises CheckpointError when there are checkpoints and none of them can be read. One of several processes does
        not know which one the others can read: there the newest must be readable.
        """
        failures = []
        for step in reversed(self.steps()):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore())
            try:
                restored = self._manager.restore(step, args=args)
            except Exception as error:  # a damaged checkpoint must not hide the good one before it
                if processes.process_count() > 1:
                    raise CheckpointError(
                        f"checkpoint {self.directory}/{step} cannot be read ({_first_line(error)}): move it out of the "
                        "folder, and the run goes on from the one before it"
                    ) from error
                failures.append(f"step {step}: {_first_line(error)}")
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
        """Moves the checkpoints newer than `step`, which could not be read, to workdir/unreadable_STEP."""
        newer_steps = [s for s in self.steps() if s > step]
        for newer in newer_steps if processes.is_first() else []:
            target = self.directory.parent / f"unreadable_{newer}"
            while target.exists():
                target = target.with_name(f"{target.name}_again")
            (self.directory / str(newer)).rename(target)
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

    def _failed(self, error: Exception) -> CheckpointError:
        kept = saved_steps(self.directory.parent)  # without the other processes, which may have ended
        return CheckpointError(
            f"could not save a checkpoint to {self.directory}: {_first_line(error)}. "
            f"The newest complete checkpoint is {'step ' + str(kept[-1]) if kept else 'none'}; "
            "free space or repair the folder, then run the same command again"
        )


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or repr(error)).splitlines()[0].split(" [tensorstore_spec=")[0]
    return line if len(line) <= 300 else f"{line[:90]} ... {line[-200:]}"  # the cause is at the end
