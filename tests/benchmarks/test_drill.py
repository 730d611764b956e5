"""The drill in short: kills where DVC writes in place need no hand, and leave what a run without them does."""

from __future__ import annotations

import random
import time

from benchmarks import kills


def test_a_flow_that_is_killed_while_dvc_writes_needs_no_hand(tmp_path):
    random.seed(0)
    case = kills.small("flow", tmp_path / "flow", kills.FLOW, moments=("lock", "rwlock", "checkpoint"))
    case.reference()
    events = list(kills.rounds(case, time.monotonic() + 600, most=3))
    assert [event["kill"] for event in events if "kill" in event] == ["lock", "rwlock", "checkpoint"]
    assert all(event.get("gone", 0.0) is not None for event in events), "a process is left"
    ends = [event for event in events if "ended" in event]
    assert ends and all(not event["ended"] for event in ends), ends
    assert not any(event["differs"] or event["left"] for event in ends), ends
