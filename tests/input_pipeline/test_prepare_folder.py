import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from input_pipeline.lock import LOCK
from input_pipeline.prepare.folder import LocalFolder


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    folder = LocalFolder(str(tmp_path / "new"))
    assert folder.sizes() == {}
    folder.write("a", b"old")
    with pytest.raises(ZeroDivisionError), folder.whole("a") as path:
        (Path(path).write_bytes(b"half"), Path(f"{path}.of_a_library").write_bytes(b"half"), 1 / 0)
    assert (folder.read("a"), folder.sizes(), os.listdir(tmp_path / "new")) == (b"old", {"a": 3}, ["a"])
    with folder.whole("a") as path:
        Path(path).write_bytes(b"new")
        inode = os.stat(path).st_ino
        assert folder.sizes() == {"a": 3}
        assert folder.read("a") == b"old"
    assert folder.read("a") == b"new"
    assert os.stat(tmp_path / "new" / "a").st_ino == inode  # renamed, not copied


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match="/a is a file: give a folder to write to"):
        LocalFolder(str(tmp_path / "a"))


def test_a_second_run_is_refused_with_the_first_ones_host_and_process(tmp_path):
    code = f"""
import sys
from input_pipeline.prepare.folder import LocalFolder
with LocalFolder({str(tmp_path)!r}).locked():
    print("in", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        (tmp_path / ".mine.partial").touch()
        who = (
            rf"^process {other.pid} on {socket.gethostname()} is preparing into {tmp_path}: wait for it, or use another"
        )
        with pytest.raises(ValueError, match=who), LocalFolder(str(tmp_path)).locked():
            pass
        assert (tmp_path / ".mine.partial").exists()  # the owner's, not ours to remove
        other.kill()  # so its lock file stays
    assert (tmp_path / LOCK).exists()
    with LocalFolder(str(tmp_path)).locked():
        assert json.loads((tmp_path / LOCK).read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
        assert not (tmp_path / ".mine.partial").exists()
        (tmp_path / ".of_a_killed_worker.partial.unfinished").touch()
    assert os.listdir(tmp_path) == []


def test_a_lock_of_another_machine_is_not_taken_over(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    folder, message = (
        LocalFolder(str(tmp_path)),
        rf"process 7 on elsewhere .*: if that one is dead, remove {tmp_path}/\.lock",
    )
    with pytest.raises(ValueError, match=message), folder.locked():
        pass


def test_a_lock_whose_owner_died_before_it_signed_is_taken_over(tmp_path):
    (tmp_path / LOCK).write_text('{"host": ')
    with LocalFolder(str(tmp_path)).locked():
        pass
    assert os.listdir(tmp_path) == []
