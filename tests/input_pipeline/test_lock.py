import json
import os
import socket
import threading
import time

import pytest

from input_pipeline import lock
from input_pipeline.lock import LOCK, lock_folder

OTHER = {"host": "elsewhere", "pid": 7, "beat": 3}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "DEAD_AFTER_S", 0.5)


def own(folder):
    return lock_folder(folder, doing="training into", fix="use another --workdir", beats=True)


def test_an_owner_gives_signs_of_life_and_leaves_nothing(tmp_path, quick):
    with own(tmp_path / "new"):
        found = []
        while len(found) < 3:
            record = json.loads((tmp_path / "new" / LOCK).read_text())
            found += [record["beat"]] if record["beat"] not in found else []
            time.sleep(0.01)
        assert (record["host"], record["pid"]) == (socket.gethostname(), os.getpid())
    assert os.listdir(tmp_path / "new") == []


def test_a_second_owner_in_the_same_process_is_refused_and_the_lock_can_be_taken_again(tmp_path):
    message = f"^this process itself is training into {tmp_path}: close what holds it, or use another"
    with own(tmp_path), pytest.raises(ValueError, match=message), own(tmp_path):
        pass
    with own(tmp_path):
        pass


def test_the_lock_of_a_dead_machine_is_taken_over_and_said(tmp_path, quick, capsys):
    (tmp_path / LOCK).write_text(json.dumps(OTHER))
    with own(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert capsys.readouterr().err == (
        f"clip-jax: process 7 on elsewhere owns {tmp_path}; waiting 0.5 s for a sign of it\n"
        "clip-jax: process 7 on elsewhere gives no sign: its run has ended, and this one takes over\n"
    )


def test_the_lock_of_a_living_process_on_another_machine_is_respected(tmp_path, quick):
    (tmp_path / LOCK).write_text(json.dumps(OTHER))
    timer = threading.Timer(0.2, lambda: (tmp_path / LOCK).write_text(json.dumps({**OTHER, "beat": 4})))
    timer.start()
    message = f"^process 7 on elsewhere is training into {tmp_path}: wait for it, or use another --workdir$"
    with pytest.raises(ValueError, match=message), own(tmp_path):
        pass
    timer.join()
    assert json.loads((tmp_path / LOCK).read_text()) == {**OTHER, "beat": 4}


def test_a_file_system_without_locks_goes_by_the_signs(tmp_path, quick, monkeypatch, capsys):
    def flock(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with own(tmp_path):
        pass
    assert capsys.readouterr().err == ""
    with own(tmp_path), pytest.raises(ValueError, match="is training into"), own(tmp_path):
        pass
