import json

import numpy as np
import pytest

from clip_jax.benchmarks.report import Report, timing_table
from clip_jax.benchmarks.timing import Timings

TIMINGS = Timings(
    seconds={"none": np.full(8, 0.5), "full": np.full(8, 0.75), "product": np.ones(8)}, excluded=frozenset({"product"})
)


def test_the_table_has_times_rates_and_ratios():
    titles, rows = timing_table("tiny", TIMINGS, {"images": 60})
    assert titles == [
        "tiny",
        *("s, fastest", "s, median", "images/s", "ratio, fastest", "median of pairs"),
        "may differ by",
    ]
    assert rows == [
        ["none", "0.5", "0.5", "120.0", "1", "1", ""],
        ["full", "0.75", "0.75", "80.0", "1.500", "1.500", "0.0%"],
    ]


def test_the_file_has_settings_versions_devices_times_and_verdict(tmp_path, capsys):
    file = tmp_path / "a.json"
    report = Report("step", {"variants": ["none", "full"]}, file, 8, 0)
    report.add("tiny", {"none": {"MiB": 1.5}, "full": {"MiB": 0.25, "left": None}}, TIMINGS, {"images": 60})
    report.note("peaks", {"float32": {"TFLOP/s": 0.125}})
    assert not file.exists()
    report.write()
    read = json.loads(file.read_text())
    assert (read["benchmark"], read["settings"]) == ("step", {"variants": ["none", "full"]})
    assert {"jax", "flax", "numpy"} <= set(read["versions"])
    assert read["devices"] == ["cpu"] * 8
    assert read["commit"] is None or len(read["commit"].removesuffix("-dirty")) == 40
    assert read["peaks"] == {"float32": {"TFLOP/s": 0.125}}
    table = read["tables"][0]
    assert table["seconds"] == {name: series.tolist() for name, series in TIMINGS.seconds.items()}
    assert table["figures"] == {"none": {"MiB": 1.5}, "full": {"MiB": 0.25, "left": None}}
    assert table["ratios"]["full"]["median"] == pytest.approx(1.5)
    assert (table["is_low_noise"], table["verdict"]) == (True, TIMINGS.verdict)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert TIMINGS.verdict in capsys.readouterr().out.splitlines()


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path):
    for file in (tmp_path / "nowhere" / "a.json", tmp_path):
        with pytest.raises(ValueError, match=f"--json={file} cannot be written: name a file in a folder that exists"):
            Report("step", {}, file, 8, 0)
