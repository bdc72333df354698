"""Sweeps from their runs to their sentence, with runs that are pretended."""

import dataclasses
import json
import math
import re

import pytest
from matplotlib.axes import Axes
from PIL import Image
from sweeps import Pretended

from clip_jax.ablations import full_scale, jobs
from clip_jax.ablations.figures import draw
from clip_jax.ablations.gallery import write_gallery
from clip_jax.ablations.jobs import run_all, shard, unique
from clip_jax.ablations.observations import as_table, facts_of
from clip_jax.ablations.results import Failure
from clip_jax.ablations.spec import Finding, ablation_names, load_ablation
from clip_jax.ablations.sweep import conclude, prepare

FILES = ("results.json", "figure.png", "report.html", "sweep.json")


def pretend(monkeypatch, accuracy=lambda sections, name: 0.5, failing=lambda sections: False):
    pretended = Pretended(accuracy, failing)
    monkeypatch.setattr(jobs, "_call", pretended)
    return pretended


def sigmoid_is_better(sections, name):
    """By 0.1 at seed 0, 0.2 at seeds 1 and 2."""
    seed = sections["data"]["seed"]
    return 0.4 + 0.01 * seed + (0.1 + 0.1 * (seed > 0)) * (sections["loss"]["kind"] == "sigmoid")


def sweep(name, workdir, num_seeds=3, command="clip-jax ablate"):
    said = []
    ablation = load_ablation(name, "mini")
    runs = prepare(ablation, num_seeds, workdir)
    run_all(unique(runs), said.append)
    return conclude(ablation, runs, workdir, command, said.append), said


def test_a_sweep_ends_in_results_figure_report_and_one_sentence(tmp_path, monkeypatch):
    pretended = pretend(monkeypatch, sigmoid_is_better)
    results, said = sweep("loss", tmp_path, command="clip-jax ablate loss --workdir=runs/a")
    assert len(pretended.calls) == 6
    assert results.sentence == (
        "Holds here: sigmoid less softmax: +16.7 points (+10.0 to +23.3 by two standard errors over 3 seeds; asked: "
        "more than -3.0)."
    )
    assert (results.seeds, results.minutes, results.failed) == ([0, 1, 2], 6.0, [])
    assert results.commits == ["0123456789abcdef"]
    averages = {(cell.arm, cell.of): cell.mean for cell in results.cells}
    assert averages["softmax", ""] == pytest.approx(0.41)
    assert averages["sigmoid", "scenes/held_out"] == pytest.approx(0.41 + 0.5 / 3)
    assert json.loads((tmp_path / "loss" / "results.json").read_text()) == json.loads(
        json.dumps(dataclasses.asdict(results))
    )
    html = (tmp_path / "loss" / "report.html").read_text()
    for shown in (results.sentence, "clip-jax ablate loss --workdir=runs/a", "data:image/webp", "0123456789abcdef"):
        assert shown in html
    assert not re.search(r"https?://|<script", html)
    with Image.open(tmp_path / "loss" / "figure.png") as figure:
        assert min(figure.size) > 400

    before = {
        name: ((tmp_path / "loss" / name).read_bytes(), (tmp_path / "loss" / name).stat().st_mtime_ns) for name in FILES
    }
    again, said = sweep("loss", tmp_path, command="clip-jax ablate loss --workdir=runs/a")
    assert len(pretended.calls) == 6  # nothing ran
    assert said == [f"loss: everything was done, nothing changed\n{results.sentence}"]
    assert again == results
    for name, (content, time) in before.items():
        file = tmp_path / "loss" / name
        assert (file.read_bytes(), file.stat().st_mtime_ns) == (content, time)


def test_a_run_that_fails_leaves_the_others_alone_and_is_named(tmp_path, monkeypatch):
    failing = pretend(
        monkeypatch, sigmoid_is_better, lambda s: s["loss"]["kind"] == "sigmoid" and s["data"]["seed"] == 1
    )
    results, said = sweep("loss", tmp_path)
    assert len(failing.calls) == 6
    assert results.failed == [Failure("sigmoid", 1, "the loss is nan at step 7")]
    assert results.findings[0].values == pytest.approx({0: 0.1, 2: 0.2})
    assert [run.state for run in results.runs] == ["done", "done", "done", "failed", "done", "done"]
    assert any("FAILED" in line and "the loss is nan at step 7" in line for line in said)
    html = (tmp_path / "loss" / "report.html").read_text()
    assert "Failed, and left out: sigmoid of seed 1." in html
    pretended = pretend(monkeypatch, sigmoid_is_better)
    results, _ = sweep("loss", tmp_path)  # it is tried again, and it alone
    assert (len(pretended.calls), results.failed) == (1, [])
    assert "Failed" not in (tmp_path / "loss" / "report.html").read_text()


def test_shards_run_everything_once_and_the_last_one_reports(tmp_path, monkeypatch):
    pretended = pretend(monkeypatch, sigmoid_is_better)
    ablation = load_ablation("loss", "mini")
    for index in (0, 1):
        runs = prepare(ablation, 3, tmp_path)
        run_all(shard(unique(runs), index, 2), lambda _: None)
        said = []
        results = conclude(ablation, runs, tmp_path, "command", said.append)
        if index == 0:
            assert results is None
            assert said == ["loss: 3 of 6 runs are not there yet; the report comes with the last"]
            assert not (tmp_path / "loss" / "results.json").exists()
    assert results.verdict == "holds"
    assert len(set(pretended.calls)) == len(pretended.calls) == 6


def test_no_two_machines_train_in_one_folder(tmp_path):
    trained, measured = (prepare(load_ablation(name, "mini"), 1, tmp_path) for name in ("scaling", "prompts"))
    every = unique([*trained, *measured])
    assert len(every) == 10  # five runs, each with a suite and without
    parts = [{run.folder for run in shard(every, index, 3)} for index in range(3)]
    assert [len(part) for part in parts] == [2, 2, 1]
    assert set.union(*parts) == {run.folder for run in every}


def test_ablations_share_the_runs_of_one_config(tmp_path, monkeypatch):
    pretended = pretend(monkeypatch)
    for name in ("loss", "projection", "precision"):  # each has the base and one other run
        sweep(name, tmp_path, num_seeds=2)
    assert len(pretended.calls) == 2 * (1 + 3)
    for name in ("few_shot", "robustness", "limitations"):  # one model and one suite for all
        sweep(name, tmp_path, num_seeds=2)
    assert len(pretended.calls) == 8 + 2 * 2


def test_a_sweep_of_another_config_is_refused_with_the_keys_that_differ(tmp_path, monkeypatch):
    pretend(monkeypatch)
    prepare(load_ablation("temperature", "mini"), 3, tmp_path)
    other = load_ablation("temperature", "mini", {"train.total_steps": 7, "optimizer.learning_rate": 0.5})
    with pytest.raises(ValueError, match=re.escape(
        f"{tmp_path / 'temperature'} holds the sweep of another config: optimizer.learning_rate was 0.002, is 0.5; "
        "train.total_steps was 1000, is 7. Use another --workdir"
    )):  # fmt: skip
        prepare(other, 3, tmp_path)
    full = load_ablation("temperature", "full", {"data.path": "tars"})
    with pytest.raises(ValueError, match=r"scale was mini, is full; .*; and \d+ more\. Use another --workdir"):
        prepare(full, 3, tmp_path)
    one = load_ablation("temperature", "mini")
    one.arms["fixed 100"]["vision"]["depth"] = 9
    del one.arms["fixed 14"]
    with pytest.raises(
        ValueError, match=r"run 'fixed 14' was there, is not; vision.depth was 4, is 9 \(of fixed 100\)\. "
    ):
        prepare(one, 3, tmp_path)
    assert [run.seed for run in prepare(load_ablation("temperature", "mini"), 5, tmp_path)][
        -1
    ] == 4  # more seeds are not


@pytest.mark.parametrize("name", ablation_names())
def test_every_ablation_goes_from_its_runs_to_its_sentence(name, tmp_path, monkeypatch):
    def accuracy(sections, set_name):
        vision = sections["vision"]
        grows = (vision.get("width", 5 * vision.get("stem_width", 8)) / 128) ** 0.5
        return 0.3 + 0.3 * grows + 0.001 * len(set_name) + 0.01 * sections["data"]["seed"]

    pretend(monkeypatch, accuracy)
    results, _ = sweep(name, tmp_path, num_seeds=2)
    assert all(found.mean is not None for found in results.findings), results.sentence
    assert all(len(found.values) == 2 for found in results.findings)
    assert results.question.endswith("?")
    assert all((results.place, results.finding, results.sentence))
    assert (tmp_path / name / "figure.png").stat().st_size > 10_000
    at_full_scale = load_ablation(name, "full", {"data.path": "tars/{source}"}, data_dir="prepared")
    assert {sections["data"]["source"] for sections in at_full_scale.arms.values()} == {"auto"}
    assert {sections["evaluation"]["data_dir"] for sections in at_full_scale.arms.values()} == {"prepared"}


def test_the_sizes_of_scaling_span_forty_times_the_compute():
    compute = [facts["compute"] for facts in facts_of(load_ablation("scaling", "mini")).values()]
    assert len(compute) == 5
    assert compute == sorted(compute)
    assert compute[-1] / compute[0] == pytest.approx(52.1, abs=0.1)


def test_the_gallery_shows_what_is_finished(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has no finished ablations: run clip-jax ablate all --workdir="):
        write_gallery(tmp_path / "runs", tmp_path / "gallery")
    pretend(monkeypatch, sigmoid_is_better)
    results, _ = sweep("loss", tmp_path / "runs", command="clip-jax ablate loss --workdir=runs/a")
    write_gallery(tmp_path / "runs", tmp_path / "gallery", lambda _: None)
    text = (tmp_path / "gallery" / "README.md").read_text()
    for shown in (
        results.sentence,
        "![loss](loss.png)",
        "    clip-jax ablate loss --workdir=runs/a",
        "| 3 | 6 | 01234567 |",
    ):
        assert shown in text
    assert "Not run yet: augmentation, batch_size" in text
    assert (tmp_path / "gallery" / "loss.png").read_bytes() == (tmp_path / "runs" / "loss" / "figure.png").read_bytes()


def test_chip_hours_are_those_of_what_is_still_to_train(tmp_path, monkeypatch):
    pretend(monkeypatch)
    ablation = load_ablation("loss", "mini")
    runs = prepare(ablation, 3, tmp_path)
    run_all(runs[:1], lambda _: None)
    plan = {"parameters": 1000, "num_devices": 16, "topology": "v5e:4x4", "chip_hours": 12.5}
    kept = {run.arm: full_scale.plan_file(tmp_path / "loss", run, "v5e:4x4") for run in runs[:2]}
    for file in kept.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(plan))
    plans = full_scale.plan_runs(runs, tmp_path / "loss", "v5e:4x4")
    lines = full_scale.as_table(runs, plans).splitlines()
    assert lines[2].split() == ["softmax", "1,000", "16", "v5e:4x4", "2", "12", "25"]
    assert lines[3].split() == ["sigmoid", "1,000", "16", "v5e:4x4", "3", "12", "38"]
    assert lines[4].split() == ["all", "5", "62"]
    unknown = {arm: {**plan, "chip_hours": None} for arm in plans}
    assert full_scale.as_table(runs, unknown).splitlines()[4].split() == ["all", "5", "-"]


def test_a_curve_shows_how_many_images_less_reach_the_same(tmp_path, monkeypatch):
    pretend(monkeypatch, lambda sections, name: 0.5 if sections["loss"]["kind"] == "sigmoid" else 0.4)
    ablation = load_ablation("loss", "mini")
    sides = [{"what": "zero_shot", "arm": arm} for arm in ("sigmoid", "softmax")]
    ratio = Finding(
        words="images of the softmax over the sigmoid's:", statistic="ratio_to_reach", a=sides[0], b=sides[1],
        x="samples_seen", low=1.0, high=math.inf, unit="times",
    )  # fmt: skip
    ablation = dataclasses.replace(
        ablation,
        measure=dataclasses.replace(ablation.measure, kind="curve", sets=("scenes/compositions", "scenes/held_out")),
        figure=dataclasses.replace(ablation.figure, kind="lines", x="samples_seen", series=(("{arm}", {}),)),
        second=dataclasses.replace(ablation.figure, kind="lines", x="far_compute", series=(("{arm}", {}),), log_x=True),
        findings=(ratio,),
    )
    runs = prepare(ablation, 2, tmp_path)
    run_all(unique(runs), lambda _: None)
    results = conclude(ablation, runs, tmp_path, "command", lambda _: None)
    # The evaluations grow evenly to 0.4 and 0.5; of the latter 0.4 lies a fifth of the way from the third to the last.
    assert results.findings[0].mean == pytest.approx((4 / 3) ** 0.8)
    assert {cell.mean for cell in results.cells} == {0.4, 0.5}  # the last evaluation's


def test_overlap_is_not_decided_where_nothing_overlaps(tmp_path, monkeypatch):
    pretended = pretend(monkeypatch)
    pretended.overlap = {"overlap_share": 0.0, "all_minus_clean": 0.0}
    pretended.overlap |= {"overlap_minus_clean": None, "overlap_minus_clean_low": None}
    results, _ = sweep("overlap", tmp_path / "none")
    assert results.verdict == "undecided"
    assert "overlapping less clean: not decidable: no set has both overlapping and clean images" in results.sentence
    pretended.overlap = {"overlap_share": 0.02, "all_minus_clean": 0.01}  # all that so small a share can add
    pretended.overlap |= {"overlap_minus_clean": 0.5, "overlap_minus_clean_low": 0.3}
    results, _ = sweep("overlap", tmp_path / "much")
    assert [found.verdict for found in results.findings] == [
        "does not hold",
        "does not hold",
        "reported only",
        "reported only",
    ]
    assert results.findings[2].mean == pytest.approx(0.01)


def test_a_suite_that_fails_leaves_others_of_the_same_run_alone(tmp_path, monkeypatch):
    pretend(monkeypatch)
    ablations = [load_ablation(name, "mini") for name in ("few_shot", "few_shot")]
    ablations[1].suite["suite"]["num_examples"] = 7
    of_one, of_other = (prepare(ablation, 1, tmp_path / str(i)) for i, ablation in enumerate(ablations))
    runs = [dataclasses.replace(of_other[0], folder=of_one[0].folder), of_one[0]]
    run_all(of_one[:1], lambda _: None)
    monkeypatch.setattr(jobs, "_call", lambda what, words, folder: "out of everything")
    run_all(runs[:1], lambda _: None)
    assert [run.failure for run in runs] == ["out of everything", None]
    assert (runs[0].suite_folder / "failed.txt").is_file()
    assert not (runs[0].folder / "failed.txt").exists()
    (runs[1].suite_folder / "report.json").unlink()  # not measured yet, which is no failure
    assert runs[1].failure is None


def test_a_set_is_measured_when_its_data_has_come(tmp_path, monkeypatch):
    pretended = pretend(monkeypatch)
    ablation = load_ablation("limitations", "mini")
    name = f"folder:{tmp_path / 'pictures'}"
    ablation.suite["suite"]["datasets"] += (name,)
    pretended.absent = {name}
    run = prepare(ablation, 1, tmp_path)[0]
    run_all([run], lambda _: None)
    assert (run.done, run.arrived, len(pretended.calls)) == (True, [], 2)
    run_all([run], lambda _: None)
    assert len(pretended.calls) == 2
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "cat" / "0.png")
    pretended.absent = set()
    assert run.arrived == [name]
    run_all([run], lambda _: None)
    assert ([what for what, _ in pretended.calls], run.arrived) == (["train", "evaluate", "evaluate"], [])


def test_a_bar_that_was_not_measured_is_not_drawn_at_zero(tmp_path, monkeypatch):
    drawn, written = [], []
    barh, text = Axes.barh, Axes.text

    def watched_barh(ax, y, width, *more, **style):
        drawn.append(list(width))
        return barh(ax, y, width, *more, **style)

    def watched_text(ax, x, y, words, **style):
        written.append(words)
        return text(ax, x, y, words, **style)

    monkeypatch.setattr(Axes, "barh", watched_barh)
    monkeypatch.setattr(Axes, "text", watched_text)
    ablation = load_ablation("robustness", "mini")
    rows = [("zero_shot", "s", 0.0), ("zero_shot", "t", 0.5), ("adapted", "t", 0.25)]
    observations = [
        {"arm": "world", "seed": 0, "what": what, "set": name, "value": value} for what, name, value in rows
    ]
    draw(ablation, as_table(observations), tmp_path / "figure.png")
    assert drawn[:2] == [[0.0, 0.5], [0.25]]
    assert written == ["not measured"]
