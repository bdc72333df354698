"""What the files of configs/ablations ask, without their runs."""

from clip_jax.ablations.spec import load_ablation


def test_objectives_are_judged_where_all_of_them_can_score():
    ablation = load_ablation("objective", "mini")
    asked = [one for one in ablation.findings if (one.low, one.high) != (float("-inf"), float("inf"))]
    assert len(asked) == 3
    assert {side["set"] for one in asked for side in (one.a, one.b)} == {"scenes/compositions"}
    assert {where["set"] for _, where in ablation.figure.series} == {"scenes/compositions", "scenes/held_out"}
    train = ablation.arms["contrastive"]["train"]
    assert (train["total_steps"], train["evaluate_every"]) == (1600, 80)  # tells ratios up to 20
