"""`--plan` against counts by hand; in processes of its own, since constants that it caches are no numbers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

DEPTH, WIDTH, CHANNELS, PATCH = 1, 32, 4, 2  # of the tiny DiT
RECIPE = """\
extends: tiny
only: [dit, swd-teacher, swd]
students: {swd: {training: {images: 128}}}
"""


def forward(grid: int) -> int:
    """FLOP of a DiT for an image of latents with this edge, layer by layer."""
    tokens, inner = (grid // PATCH) ** 2, CHANNELS * PATCH**2
    block = tokens * WIDTH * WIDTH * (3 + 1 + 2 * 4) + 2 * tokens**2 * WIDTH + 6 * WIDTH**2
    ends = 2 * tokens * inner * WIDTH + 2 * WIDTH**2  # patches, the final layer and its modulation
    return 2 * (DEPTH * block + ends + 256 * WIDTH + WIDTH**2)  # and the embedding of the time


OTHERS = """\
extends: tiny
only: [dit, swd-teacher]
parts: {dit: {training: {precision: fp32}}, swd-teacher: {training: {recompute: true}}}
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory, sources):
    folder = tmp_path_factory.mktemp("plan") / "project"
    shutil.copytree(sources, folder)

    def plan(written: str) -> str:
        (folder / "params" / "recipes" / "mine.yaml").write_text(written)
        command = [sys.executable, "-m", "stages.recipe", "mine", "--plan"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return plan


@pytest.fixture(scope="module")
def printed(plans):
    return plans(RECIPE)


@pytest.fixture(scope="module")
def others(plans):
    return plans(OTHERS)


def of(name: str, printed: str) -> str:
    return re.search(rf"^{name}: .*\n(  .*\n)+", printed, re.MULTILINE)[0]


def test_an_image_costs_the_calls_of_its_sampler(printed):
    tera = r"an image: ([\d.e-]+) TFLOP"
    dit, swd = (float(re.search(tera, of(name, printed))[1]) * 1e12 for name in ("dit", "swd"))
    assert dit == pytest.approx(4 * 2 * forward(8), rel=5e-3)  # four guided steps
    assert swd == pytest.approx(sum(map(forward, (4, 6, 8, 8))), rel=5e-3)


def test_a_training_costs_the_steps_of_its_budget(printed):
    found = of("dit", printed)
    step = float(re.search(r"a step of 16 images: ([\d.e-]+) TFLOP", found)[1]) * 1e12
    assert step == pytest.approx(16 * 3 * forward(8), rel=0.1)  # backward twice the forward, about
    steps, total, hours = re.search(r"([\d,]+) steps: ([\d.e-]+) PFLOP, ([\d.e-]+) hours on 1 H100", found).groups()
    assert int(steps) == 256 // 16
    assert float(total) * 1e15 == pytest.approx(16 * step, rel=1e-2)
    assert float(hours) == pytest.approx(16 * step / (0.4 * 989e12) / 3600, rel=1e-2)


def test_what_a_step_draws_counts_as_often_as_it_comes(printed):
    """The teacher sees each of its three resolutions in a third of the steps."""
    found = re.search(
        r"TFLOP \(([\d.e-]+) at 4, ([\d.e-]+) at 6, ([\d.e-]+) at 8\)", of("swd-teacher", printed)
    ).groups()
    thirds = [16 * 3 * forward(grid) / 3 for grid in (4, 6, 8)]  # backward twice the forward, about
    assert [float(each) * 1e12 for each in found] == pytest.approx(thirds, rel=0.12)


def test_the_memory_is_that_of_weights_gradients_moments_average_and_activations(printed):
    found = of("dit", printed)
    counts = re.search(r"dit: ([\d,]+) parameters, ([\d,]+) trained", found).groups()
    parameters, trained = (int(each.replace(",", "")) for each in counts)
    sizes = re.search(r"at most ([\d.e-]+) GB, memory with all else ([\d.e-]+) GB", found).groups()
    kept, memory = map(float, sizes)
    assert parameters == trained
    assert memory * 1e9 == pytest.approx(kept * 1e9 + 20 * trained, rel=0.02)  # five numbers of fp32 each


def kept_of(name: str, printed: str) -> float:
    """The bytes of activations."""
    return float(re.search(r"at most ([\d.e-]+) GB", of(name, printed))[1]) * 1e9


def test_a_training_in_fp32_takes_the_peak_of_tf32_and_keeps_wider_activations(printed, others):
    found = of("dit", others)
    total, hours = re.search(r"([\d.e-]+) PFLOP, ([\d.e-]+) hours on 1 H100", found).groups()
    assert float(hours) == pytest.approx(float(total) * 1e15 / (0.4 * 495e12) / 3600, rel=1e-2)
    assert kept_of("dit", others) > 1.05 * kept_of("dit", printed)


def test_what_is_computed_again_costs_a_third_forward_pass_and_is_not_kept(printed, others):
    pattern = r"a step of 16 images: ([\d.e-]+) TFLOP"
    plain, again = (float(re.search(pattern, of("swd-teacher", each))[1]) for each in (printed, others))
    assert 1.1 < again / plain < 1.4  # at most four passes in the place of three
    assert kept_of("swd-teacher", others) < kept_of("swd-teacher", printed)


def test_a_student_is_told_resolution_by_resolution(printed):
    found = of("swd", printed)
    assert re.search(r"TFLOP \([\d.e-]+ at 4, [\d.e-]+ at 6, [\d.e-]+ at 8\); activations of 16 images", found)
