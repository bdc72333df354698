import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.runs.logging import METRICS_LAG, MetricsWriter, NonFiniteLossError, ProgressLog, read_metrics
from clip_jax.tables import format_table


def row(step, **values):
    return {"step": step, "samples_seen": step * 24, **values}


def step_metrics(loss=1.5):
    names = ("chance_loss", "grad_norm", "image_to_text_accuracy", "text_to_image_accuracy")
    return {"loss": jnp.float32(loss), **{name: jnp.float32(0.25) for name in names}}


def test_rows_are_read_back(tmp_path):
    assert read_metrics(tmp_path) == []
    rows = [row(1, loss=2.5), row(2, loss=2.25), row(2, **{"compositions_top@1": 0.5})]
    writer = MetricsWriter(tmp_path, resume_step=0)
    for each in rows:
        writer.write(each)
    writer.flush()
    assert read_metrics(tmp_path) == rows
    writer.close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_flushed_rows_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file)))
    writer = MetricsWriter(tmp_path, resume_step=0)
    writer.write(row(1))
    writer.flush()
    writer.close()
    file = (tmp_path / "metrics.jsonl").stat()
    assert (file.st_ino, file.st_size) in [(each.st_ino, each.st_size) for each in synced]


def test_resuming_drops_later_rows_and_torn_lines(tmp_path):
    whole = [json.dumps(row(step, loss=step / 4)) for step in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*whole, whole[0][:17]]))
    writer = MetricsWriter(tmp_path, resume_step=2)
    writer.write(row(3, loss=7.0))
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == "\n".join([*whole[:2], json.dumps(row(3, loss=7.0))]) + "\n"


@pytest.mark.parametrize(
    "damaged",
    [b"", b"\0" * 70, b'{"step": 2, "samples', b"\xff" + json.dumps(row(2, loss=0.5)).encode(), b"7", b"[]",
     json.dumps({"step": 2}).encode(), json.dumps({"step": "2", "samples_seen": 48, "loss": 0.5}).encode(),
     json.dumps(row(2, loss="0.5")).encode(), b"[" * 100_000],
)  # fmt: skip
def test_damaged_lines_are_named_left_out_and_kept(tmp_path, damaged, capsys):
    whole = [json.dumps(row(step, loss=step / 4)).encode() for step in (1, 2, 3, 4)]
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(before := b"\n".join([whole[0], damaged, *whole[2:], b""]))
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 3, 4]
    MetricsWriter(tmp_path, resume_step=3).close()
    assert file.read_bytes() == b"\n".join([whole[0], whole[2], b""])
    line = "line 2 cannot be read; " if damaged else ""
    assert capsys.readouterr().err == (
        f"clip-jax: {file} is damaged: {line}1 of the first 3 steps have no row, the first of them 2. The run goes on; "
        f"curves and means leave them out. The file as it was is {file}.damaged.\n"
    )
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before


def test_rows_that_are_gone_are_named(tmp_path, capsys):
    MetricsWriter(tmp_path, resume_step=3).close()
    assert "3 of the first 3 steps have no row, the first of them 1. The run goes on" in capsys.readouterr().err


def test_rows_that_the_run_writes_again_are_not_named(tmp_path, capsys):
    whole = [json.dumps(row(step, loss=step / 4)) for step in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*whole, whole[0][:17]]))
    MetricsWriter(tmp_path, resume_step=3).close()
    assert capsys.readouterr().err == ""
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "tensorboard"]


def test_a_last_line_without_its_newline_does_not_swallow_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(1)))
    writer = MetricsWriter(tmp_path, resume_step=1)
    writer.write(row(2))
    writer.close()
    assert read_metrics(tmp_path) == [row(1), row(2)]


def test_the_bar_shows_broken_records_once_there_are_some(tmp_path):
    log = ProgressLog(tmp_path, resume_step=0, total_steps=2, global_batch_size=24)
    for step, broken in ((1, 0), (2, 1234)):
        log.add(step, step_metrics() | {"data_broken": broken}, index=np.arange(24))
        log.flush()
        assert ("1,234 broken records" in log._bar.postfix) == (broken > 0)
        assert ("broken" in log._bar.postfix) == (broken > 0)
    log.close()


def test_rows_of_a_run(tmp_path):
    log = ProgressLog(tmp_path, resume_step=10, total_steps=20, global_batch_size=24)
    for step in range(11, 14 + METRICS_LAG):
        with log.waiting_for_data():
            pass
        log.add(step, step_metrics(loss=step / 4), index=np.arange(24))
    log._writer.flush()
    assert [r["step"] for r in read_metrics(tmp_path)] == [11, 12, 13]  # the rest may still be running
    log.flush()
    log.close()
    rows = read_metrics(tmp_path)
    assert [(r["step"], r["samples_seen"], r["loss"]) for r in rows] == [
        (step, step * 24, step / 4) for step in range(11, 14 + METRICS_LAG)
    ]
    assert all(r["images_per_s"] > 0 and 0 <= r["data_wait_share"] <= 1 for r in rows)


@pytest.mark.parametrize(("name", "value"), [("loss", np.nan), ("loss", np.inf), ("grad_norm", np.nan)])
def test_a_loss_or_gradient_that_is_not_finite_stops_with_its_step_and_records(tmp_path, name, value):
    log = ProgressLog(tmp_path, resume_step=0, total_steps=20, global_batch_size=3)
    for step, metrics in ((1, {}), (2, {name: np.float32(value)}), (3, {"loss": np.float32(np.nan)})):
        log.add(step, step_metrics(1.5) | metrics, index=np.arange(3) + 100 * step)
    with pytest.raises(NonFiniteLossError, match=f"the {name} is {value} at step 2") as error:
        log.flush()
    log.close()
    assert error.value.step == 2
    np.testing.assert_array_equal(error.value.index, [200, 201, 202])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]


def test_a_table_is_aligned():
    assert format_table(["set", "top-1", "n"], [["compositions", 0.91239, 5], ["held out", float("nan"), 1000]]) == (
        "set           top-1     n\n------------  -----  ----\ncompositions  0.912     5\nheld out          -  1000"
    )
