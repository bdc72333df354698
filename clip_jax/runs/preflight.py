"""Before long work starts on several processes: are they of one mind, and do they share a file system?"""

import platform
import secrets
import time
from pathlib import Path
from typing import Any

import jax

import input_pipeline
from clip_jax.config.record import package_versions
from clip_jax.distributed import processes
from clip_jax.distributed.rendezvous import HostsError
from input_pipeline.sources import Source
from input_pipeline.storage import digest

SHARED_TIMEOUT_S = 20.0  # a network file system may show a new file late


def check_programs(sections: dict[str, dict[str, Any]]) -> None:
    """Raises HostsError when processes differ in config, code, package versions or number and kind of devices."""
    if processes.process_count() == 1:
        return
    config = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    kinds = sorted(device.device_kind for device in jax.local_devices())
    versions = {f"version of {name}": version for name, version in package_versions().items()}
    programs = {"python": platform.python_version(), "local devices": [len(kinds), *sorted(set(kinds))]}
    processes.check_equal("config, code or devices", {**config, **_code(), **versions, **programs})


def check_data(train: Source, validation: Source) -> None:
    """Raises HostsError when processes see different records."""
    if processes.process_count() == 1:
        return
    sources = {"training data": train, "validation data": validation}
    facts = {f"{name}, {key}": value for name, s in sources.items() for key, value in s.fingerprint().items()}
    processes.check_equal("data", facts)


def check_shared(workdir: Path) -> None:
    """Raises HostsError on a process that does not see the same folder as the first one."""
    if processes.process_count() == 1:
        return
    mark = processes.from_first("the workdir", lambda: _leave_mark(workdir))
    deadline = time.monotonic() + SHARED_TIMEOUT_S
    while not (seen := (workdir / mark).exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = [p for p, sees in enumerate(processes.gather("the workdir", seen)) if not sees]
    if processes.is_first():
        (workdir / mark).unlink(missing_ok=True)
    if blind:
        names = ", ".join(processes.describe(p) for p in blind)
        raise HostsError(
            f"{names} cannot see what {processes.describe(0)} writes to --workdir={workdir}: it must be the same "
            "folder of a file system that all processes share"
        )


def _leave_mark(workdir: Path) -> str:
    name = f".shared_{secrets.token_hex(8)}"
    (workdir / name).touch()
    return name


def _code() -> dict[str, str]:
    """Source file -> digest of it."""
    folders = [Path(__file__).parents[1], *map(Path, input_pipeline.__path__)]
    return {
        str(file.relative_to(folder.parent)): digest(file.read_bytes())
        for folder in folders
        for file in sorted(folder.rglob("*.py"))
    }
