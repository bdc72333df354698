"""What the bar says while no step ends."""

import numpy as np

from clip_jax.runs.logging import ProgressLog


def test_the_bar_says_that_it_compiles_or_evaluates(tmp_path, capsys):
    log = ProgressLog(tmp_path, 0, 2, 3)
    assert "compiling the step" in capsys.readouterr().err
    log.add(1, {"loss": 1.0, "grad_norm": 1.0, "chance_loss": 1.1, "text_accuracy": 0.5}, np.arange(3))
    log.flush()
    log.show("evaluating")
    shown = capsys.readouterr().err
    assert "1/2" in shown
    assert "evaluating" in shown
    log.close()


def test_a_finished_run_compiles_nothing(tmp_path, capsys):
    ProgressLog(tmp_path, 2, 2, 3).close()
    assert "compiling" not in capsys.readouterr().err
