import sys

import pytest

from input_pipeline.prefetch import progress_bar


@pytest.mark.parametrize(("is_terminal", "every_s"), [(True, 0.1), (False, 10)])
def test_a_bar_is_drawn_often_on_a_terminal_alone(monkeypatch, is_terminal, every_s):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with progress_bar(total=7, unit=" images") as bar:
        assert (bar.mininterval, bar.dynamic_ncols is not None, bar.total, bar.unit) == (every_s, True, 7, " images")
