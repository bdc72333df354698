"""No process outlives its test."""

import os
import signal
import sys

import pytest
from processes import Processes, eventually

pytestmark = pytest.mark.skipif(not os.path.exists("/proc"), reason="processes are looked up in /proc")
SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
# Leaves a child in another session, and is gone.
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"


def test_a_process_that_has_left_its_session_is_killed_when_the_test_has_failed():
    def fail(processes: Processes) -> None:
        parent = processes.start([sys.executable, "-c", PARENT, SLEEPER])
        parent.wait(20)
        eventually(lambda: processes.living("time.sleep(60)"))
        raise AssertionError("the test has failed")

    with pytest.raises(AssertionError, match="the test has failed"), Processes() as processes:
        fail(processes)
    assert processes.living() == []


def test_processes_can_be_interrupted_however_the_tests_were_started(processes):
    code = "import signal; print(signal.getsignal(signal.SIGINT).__name__)"
    assert processes.run([sys.executable, "-c", code], 20) == (0, "default_int_handler\n", "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_each_finds_its_own(processes):
    with Processes() as others:
        process = others.start([sys.executable, "-c", SLEEPER])
        assert process.stdout.readline() == "\n"
        assert others.living() == [process.pid]
        assert others.living("another command") == processes.living() == []
    assert process.returncode == -signal.SIGKILL
