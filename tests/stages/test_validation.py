"""The validation loss: values by hand, the same whatever batch, seed and interruption, and no bit of the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import CONFIG, TRAINING, replace
from parts import build
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multiscale.core.storage import Table
from multiscale.core.streams import Held, generator
from multiscale.methods.swd import losses
from multiscale.methods.swd.schedule import MMD_RANGE
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import fit
from multiscale.training.part import Part
from multiscale.training.validation import NAME, validation_loss

COUNT, CPU = 12, torch.device("cpu")
SOME = replace(TRAINING, validation_images=COUNT)
KINDS = ["dit", "msf-1", "ssd", "sgm", "low", "details", "fine", "teacher", "student", "adapter"]


class Stub(nn.Module):
    """A network whose output is known."""

    def __init__(self, output):
        super().__init__()
        self.forward = output


def drawn(part: Part, count: int = COUNT) -> list[tuple[dict[str, Tensor], float, int]]:
    """The rows, level and view of each image: an even choice, shuffled, each view at evenly spaced levels."""
    order = torch.randperm(count, generator=generator(0, "validation/order")).tolist()
    places = [order[k] * len(part.held_out) // count for k in range(count)]
    rows = [part.held_out[torch.tensor([place])] for place in places]
    per = count // part.views
    return [(row, (k // part.views + 0.5) / per, k % part.views) for k, row in enumerate(rows)]


def noise(seed: int, shape: tuple[int, ...], name: str = "noise") -> np.ndarray:
    return torch.randn(shape, generator=generator(seed, f"validation/{name}")).double().numpy()


def held_out(name: str, decomposed) -> Part:
    """A part whose held-out images are its data, as no training is meant."""
    part = build(name, decomposed)
    part.held_out = part.data
    return part


def loss_of(part: Part, net: nn.Module, batch: int = 5) -> float:
    found = validation_loss(part, net, COUNT, batch, CPU)
    assert found is not None
    return found


def test_of_a_flow_it_is_the_error_of_the_velocity_at_the_levels_as_times(decomposed):
    part, errors = held_out("msf-1", decomposed), []
    seen = []

    def output(x, t, *given):
        seen.extend(t.tolist())
        return x[:, :1]  # x_t: the prior beside it is not noisy

    found = loss_of(part, Stub(output))
    for seed, (row, t, _) in enumerate(drawn(part)):
        y = (row["y1"][0].double().numpy() - 0.1) / (0.8 + 8 / 20)
        eps = noise(seed, y.shape)
        errors.append(np.square((1 - t) * y + t * eps - (eps - y)).mean())
    assert found == pytest.approx(np.mean(errors), rel=1e-5)
    assert seen == pytest.approx([(k + 0.5) / COUNT for k in range(COUNT)])


def test_of_a_teacher_each_resolution_counts_as_much(decomposed):
    part, errors = held_out("teacher", decomposed), []
    assert part.views == 2
    for seed, (row, _, view) in enumerate(drawn(part)):
        y = row[("z4", "z8")[view]][0].double().numpy()
        errors.append(np.square(noise(seed, y.shape) - y).mean())
    assert loss_of(part, Stub(lambda x, t, *given: 0 * x)) == pytest.approx(np.mean(errors), rel=1e-5)


def clean_error(y: np.ndarray, place: float, seed: int) -> float:
    """min(SNR, 1) times the squared error of the clean data by a network that takes the whole state for noise."""
    t = 0.001 + 0.999 * place
    alpha = math.exp(-0.5 * (0.1 * t + 9.95 * t**2))
    sigma = math.sqrt(1 - alpha**2)
    x = alpha * y + sigma * noise(seed, y.shape)
    return min(alpha**2 / sigma**2, 1) * np.square((x - sigma * x) / alpha - y).mean()


@pytest.mark.parametrize("snr_cap", [1.0, 5.0, None])
def test_of_a_score_model_it_is_the_clean_images_error_whatever_the_weight_in_training(snr_cap, decomposed):
    part, errors = held_out("sgm", decomposed), []
    shift, scale = part.data.arrays["pixels"].mean() / 255, part.data.arrays["pixels"].std() / 255
    for seed, (row, place, _) in enumerate(drawn(part)):
        errors.append(clean_error((row["pixels"][0].double().numpy() / 255 - shift) / scale, place, seed))
    part.weight = None  # of the settings: not used
    assert loss_of(part, Stub(lambda x, t, *given: x)) == pytest.approx(np.mean(errors), rel=1e-4)


def test_of_diffused_details_it_is_the_error_of_the_standardised_band(decomposed):
    part, errors = held_out("fine", decomposed), []
    std = np.array(part.levels.details[0].scale)[:, None, None]
    for seed, (row, place, _) in enumerate(drawn(part)):
        errors.append(clean_error(row["details-1"][0].double().numpy() / std, place, seed))
    found = loss_of(part, Stub(lambda x, t, *given: x[:, :3]))  # the coarse band beside the state is not noisy
    assert found == pytest.approx(np.mean(errors), rel=1e-4)


def test_of_a_denoiser_it_is_the_clean_images_error_at_the_next_states_resolution(decomposed):
    part, errors = held_out("ssd", decomposed), []
    resolutions = set()
    for row, level, _ in drawn(part):
        t = int(40 * level)
        clean = torch.nn.functional.adaptive_avg_pool2d(
            row["pixels"].double() / 127.5 - 1, part.process.resolution(t - 1)
        )
        resolutions.add(clean.shape[-1])
        errors.append(min(part.process.snr(t), 1) * clean.square().mean().item())
    assert len(resolutions) == 2

    def output(x, t, *given, out_resolution):
        return x.new_zeros(len(x), 1, out_resolution, out_resolution)

    assert loss_of(part, Stub(output)) == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_held_out_image_is_asked_for_at_the_resolution_of_the_state_before_a_change_of_it(decomposed):
    """States 29, 30 and 31 in one batch: at 30 the resolution halves, and the image is the full one."""
    part, asked = held_out("ssd", decomposed), []
    assert part.process.transitions == [30]
    rows, levels = part.data[torch.arange(3)], (torch.tensor([29, 30, 31]) + 0.5) / 40

    def output(x, t, *given, out_resolution):
        asked.append((x.shape[-1], t.tolist(), out_resolution))
        return x.new_zeros(len(x), 1, out_resolution, out_resolution)

    found = part.errors(Stub(output), rows, Held([0, 1, 2], levels, 0)).tolist()
    assert sorted(asked) == [(8, [30], 16), (8, [31], 8), (16, [29], 16)]
    clean = rows["pixels"].double() / 127.5 - 1
    small = torch.nn.functional.interpolate(clean, size=(8, 8), mode="bilinear", antialias=True)
    squares = [clean[0].square().mean(), clean[1].square().mean(), small[2].square().mean()]
    wanted = [min(part.process.snr(29 + k), 1) * each.item() for k, each in enumerate(squares)]
    assert found == pytest.approx(wanted, rel=1e-4)


def test_of_a_generator_it_is_the_error_of_its_mean_in_standard_deviations_of_the_band(decomposed):
    part, errors = held_out("details", decomposed), []
    spread = part.levels.details[0].scale[0]
    assert part.views == len(part.covers)
    for seed, (row, _, view) in enumerate(drawn(part)):
        level = part.covers[view]
        real, std = row[f"details-{level}"][0].double().numpy(), np.array(part.levels.details[level - 1].scale)
        made = [noise(seed, (1, *real.shape[1:]), f"noise-{k}") for k in range(2)]
        first, second = (each - real / std[:, None, None] for each in made)  # of a generator that returns its noise
        errors.append((first * second).mean())
    assert spread > 0
    found = loss_of(part, Stub(lambda x: x[:, 1:2].expand(-1, 3, -1, -1)))
    assert found == pytest.approx(np.mean(errors), rel=1e-4)


def test_of_a_student_it_is_the_distance_of_the_teachers_mean_tokens(decomposed):
    part = held_out("student", decomposed)
    sigmas, steps = part.schedule.sigmas, []

    def right(x, sigma, *given):
        """The velocity to the data's own latents, whose rows the loop below sets."""
        return (x - right.real) / sigma.view(-1, 1, 1, 1)

    for seed, (row, level, view) in enumerate(drawn(part)):
        held = Held([seed], torch.tensor([level]), view)
        right.real = part.renormalise(row[f"z{(4, 8)[view]}"])
        assert part.errors(Stub(right), row, held).item() == pytest.approx(0, abs=1e-9)
        wrong = Stub(lambda x, sigma, *given: (x - right.real - 1) / sigma.view(-1, 1, 1, 1))
        sigma = part.grid[MMD_RANGE[0] + int(level * (MMD_RANGE[1] - MMD_RANGE[0]))].view(1)
        eps = torch.from_numpy(noise(seed, tuple(right.real.shape[1:]), "mmd-noise")).float()
        tokens = [
            part.teacher((1 - sigma) * z + sigma * eps, sigma, row["label"], block=0, stop=True)
            for z in (right.real + 1, right.real)
        ]
        expected = losses.mmd(*tokens, "mse").item()
        assert expected > 1e-6
        assert part.errors(wrong, row, held).item() == pytest.approx(expected, rel=1e-3)
        steps.append(sigmas[view])
    assert steps.count(sigmas[0]) == steps.count(sigmas[1]) == COUNT // 2


@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_same_number_in_batches_of_any_size_and_for_any_seed(name, decomposed):
    part = held_out(name, decomposed)
    net = part.networks[part.main]
    found = [loss_of(part, net, batch) for batch in (1, 5, 64)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5) and math.isfinite(found[0]) and found[0] != 0


@pytest.mark.parametrize("name", ["msf-1", "ssd", "low", "details", "student", "adapter"])
def test_weights_and_history_are_the_same_bits_with_it_without_it_and_resumed(name, decomposed):
    class Stopped(Exception):
        pass

    def stop(seen):
        if seen == 56:
            raise Stopped

    def train(scratch, training=SOME, **options):
        part = held_out(name, decomposed)
        return fit(part, training, 0, Checkpoints(decomposed / scratch, name, "key"), **options)

    rows = []
    found, without = train("with", on_row=[rows.append]), train("without", replace(SOME, validation_images=0))
    assert rows == found.history
    assert all(torch.equal(value, without.weights[key]) for key, value in found.weights.items())
    assert [row for row in found.history if NAME not in row] == without.history
    checked = [row for row in found.history if NAME in row]
    assert [row["images"] for row in checked] == [16, 24, 32, 40, 48, 64, 72, 80, 88, 96]  # after whole batches of 8
    assert all(row.keys() == {"images", NAME} for row in checked)
    part = held_out(name, decomposed)
    net = part.networks[part.main]
    net.load_state_dict(found.weights)
    assert loss_of(part, net, 8) == pytest.approx(checked[-1][NAME], rel=1e-5), "of the averaged weights"
    with pytest.raises(Stopped):
        train("left", on_step=stop, checkpoint_seconds=0.0)
    resumed = train("left")
    assert resumed.history == found.history
    assert all(torch.equal(value, resumed.weights[key]) for key, value in found.weights.items())


def test_without_held_out_images_or_a_measure_there_is_none(decomposed):
    part = build("dit", decomposed)
    assert part.held_out is None and validation_loss(part, part.networks["net"], COUNT, 8, CPU) is None
    bare = Part("bare", part.data, {"net": nn.Linear(1, 1)}, CONFIG)
    bare.held_out = part.data
    assert validation_loss(bare, bare.networks["net"], COUNT, 8, CPU) is None


def test_few_held_out_images_come_round_with_noise_of_their_own(decomposed):
    part = build("dit", decomposed)
    part.held_out = Table({key: rows[:5] for key, rows in part.data.arrays.items()})
    errors = []
    for seed, (row, _, _) in enumerate(drawn(part)):
        y = (row["y0"][0].double().numpy() - 0.1) / (0.8 + 8 / 20)
        errors.append(np.square(noise(seed, y.shape) - y).mean())
    assert loss_of(part, Stub(lambda x, t, *given: 0 * x)) == pytest.approx(np.mean(errors), rel=1e-5)


def test_a_stage_trains_with_the_held_out_rows_beside_its_data(decomposed, monkeypatch):
    from stages.common import fitting
    from stages.common.paths import HELD_OUT
    from stages.schema.data import Run

    rows = load_file(decomposed / "full" / "targets.safetensors")
    save_file({key: value[:6].clone() for key, value in rows.items()}, decomposed / "full" / HELD_OUT)
    monkeypatch.setattr(fitting.codec, "carry", lambda *given: None)
    made = []

    def make():
        made.append(build("dit", decomposed))
        return made[-1]

    job = fitting.Job("dit", make, replace(SOME, images=16), 0, "key", decomposed / "out", decomposed / "full")
    fitting.work(job, Run(previews=0), lambda seen: None)
    assert torch.equal(made[-1].held_out[slice(None)]["y0"], rows["y0"][:6]) and len(made[-1].data) == 40
    history = (decomposed / "out" / "history.jsonl").read_text().splitlines()
    assert sum(NAME in row for row in history) == 2
