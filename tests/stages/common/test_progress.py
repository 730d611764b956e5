"""The bars of long work."""

from __future__ import annotations

import time

import pytest

from stages.common.harness import progress


@pytest.mark.parametrize("resumes", [True, False])
def test_the_speed_of_a_resumed_work_is_that_of_its_own_run(capsys, resumes):
    with progress("train", 2_000_000, resumes=resumes) as reach:
        reach(1_999_990)
        time.sleep(0.1)
        reach(2_000_000)
    said = capsys.readouterr().err
    assert "train: 100%" in said
    # Ten images in a tenth of a second; two millions would be ten thousand times as fast.
    assert ("Mimg/s" in said) != resumes
