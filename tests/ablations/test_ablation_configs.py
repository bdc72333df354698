"""What the files of configs/ablations ask, without their runs."""

import dataclasses

import pytest

from clip_jax.ablations.observations import facts_of
from clip_jax.ablations.spec import load_ablation
from configs import clip_rn50


def test_objectives_are_judged_where_all_of_them_can_score():
    ablation = load_ablation("objective", "mini")
    asked = [one for one in ablation.findings if (one.low, one.high) != (float("-inf"), float("inf"))]
    assert len(asked) == 3
    assert {side["set"] for one in asked for side in (one.a, one.b)} == {"scenes/compositions"}
    assert {where["set"] for _, where in ablation.figure.series} == {"scenes/compositions", "scenes/held_out"}
    train = ablation.arms["contrastive"]["train"]
    assert (train["total_steps"], train["evaluate_every"]) == (1200, 75)  # distinguishes ratios up to 16


@pytest.mark.parametrize("path", ["", "tars"])
def test_two_sources_need_two_paths(path):
    with pytest.raises(ValueError, match=rf"dataset compares two sources, and data.path='{path}' names one: give "):
        load_ablation("dataset", "full", {"data.path": path})
    arms = load_ablation("dataset", "full", {"data.path": "tars/{source}/{00..99}.tar"}).arms
    paths = [sections["data"]["path"] for sections in arms.values()]
    assert paths == ["tars/first/{00..99}.tar", "tars/second/{00..99}.tar"]


def test_runs_that_are_the_same_compare_nothing():
    message = "ablation augmentation: its runs 'whole side' and '0.4 and more' are of the same config"
    with pytest.raises(ValueError, match=message):
        load_ablation("augmentation", "mini", {"data.min_crop_scale": 0.4})


def test_what_is_changed_in_all_runs_is_in_all_runs():
    changes = {"model.activation": "gelu", "loss.block_size": 256, "optimizer.weight_decay": 0.1, "text.depth": 6}
    arms = load_ablation("scaling", "full", {"data.path": "tars", **changes}).arms
    for sections in arms.values():
        assert {key: sections[key.partition(".")[0]][key.partition(".")[2]] for key in changes} == changes
    published, own = load_ablation("scaling", "full").arms["RN50"], clip_rn50.get_config().to_dict()
    for section in ("model", "vision", "text", "loss", "optimizer"):
        assert published[section] == own[section]
    with pytest.raises(ValueError, match=r"run 'RN50': it has a section 'vision' of its own, which would lose "):
        load_ablation("scaling", "full", {"vision.patch_size": 16})
    with pytest.raises(ValueError, match=r"scaling: each of its runs sets vision.width itself, and --config.vision.wi"):
        load_ablation("scaling", "mini", {"vision.width": 48})


def test_the_papers_settings_can_be_run():
    objective = load_ablation("objective", "full").arms["language model"]["evaluation"]
    assert (objective["templates"], objective["num_examples"]) == ("one", 5000)  # it scores each prompt by itself
    assert load_ablation("overlap", "full").suite["overlap"]["num_training"] == 1_000_000
    trains = [sections["train"] for sections in load_ablation("batch_size", "full").arms.values()]
    assert len({train["total_steps"] / train["evaluate_every"] for train in trains}) == 1


def test_encoders_differ_in_the_image_tower_alone():
    ablation = load_ablation("encoders", "mini")
    assert all(sections["text"] == ablation.arms["ViT/S"]["text"] for sections in ablation.arms.values())
    assert len({sections["optimizer"]["learning_rate"] for sections in ablation.arms.values()}) == 1
    assert (ablation.figure.x, ablation.findings[0].x) == ("image_compute", "image_compute")
    arms = {name: ablation.arms[name] for name in ("ViT/S", "ResNet/S")}
    facts = facts_of(dataclasses.replace(ablation, arms=arms)).values()
    text = {of["compute"] - of["image_compute"] for of in facts}
    assert len(text) == 1  # FLOPs of the text and its projection
    # One block of width 64 over 16 tokens and a projection: 4 matrices of attention, 2 of 4 times the width.
    T, D = 16, 64
    assert text == {2 * T * 12 * D**2 + 2 * 2 * T**2 * D + 2 * D * 64}
