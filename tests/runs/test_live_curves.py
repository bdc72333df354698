"""Curves that are drawn again while a run trains, and the stop button."""

import json
import signal
import time

import IPython.display
import pytest

from clip_jax.runs.live_curves import live_curves


@pytest.fixture
def drawn(monkeypatch):
    """The pictures of the cell, in order."""
    pictures = []

    class Handle:
        def update(self, image):
            pictures.append(image.data)

    monkeypatch.setattr(IPython.display, "display", lambda **_: Handle())
    return pictures


def write(workdir, steps):
    rows = [{"step": step, "samples_seen": 8 * step, "loss": 4 / step, "chance_loss": 2.1} for step in range(1, steps)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_it_draws_during_the_run_and_once_at_its_end(tmp_path, drawn):
    with live_curves(tmp_path, every_s=0.01):
        assert not drawn  # there is no run yet
        write(tmp_path, 5)
        deadline = time.monotonic() + 30
        while not drawn and time.monotonic() < deadline:
            time.sleep(0.05)
        before = len(drawn)
        assert before
        write(tmp_path, 9)
    assert len(drawn) > before
    assert drawn[-1] != drawn[0]
    assert drawn[-1].startswith(b"\x89PNG")


@pytest.fixture
def received():
    """The signals of the stop button, in order."""
    numbers = []
    previous = signal.signal(signal.SIGINT, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGINT, previous)


def test_the_stop_signal_is_sent_once(tmp_path, drawn, received):
    with live_curves(tmp_path, every_s=60, stop_at=7):
        write(tmp_path, 7)  # up to step 6
        time.sleep(0.5)
        assert not received
        write(tmp_path, 8)
        time.sleep(1)
    assert received == [signal.SIGINT]


def test_a_run_that_is_beyond_the_step_is_not_stopped(tmp_path, drawn, received):
    write(tmp_path, 9)
    with live_curves(tmp_path, every_s=60, stop_at=7):
        time.sleep(0.5)
    assert not received


def test_outside_a_notebook_it_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(IPython.display, "display", lambda **_: None)
    with (
        pytest.raises(ValueError, match=r"live_curves draws in a notebook; elsewhere look at curves\.png"),
        live_curves(tmp_path),
    ):
        pass
