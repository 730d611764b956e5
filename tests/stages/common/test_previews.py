"""The pictures of trainings: what the sampler makes of the averaged weights by then, at no cost to the result."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TRAINING, replace
from parts import CLASSES, COUNT, SECTIONS, build
from PIL import Image

from multiscale import methods, pictures
from multiscale.core.models import IMAGES
from multiscale.core.pixels import to_pixels, to_unit
from multiscale.methods.msf.sampler import MSFSampler
from multiscale.methods.wmgm.bands import detail
from multiscale.methods.wmgm.sampler import WMGMSampler
from multiscale.methods.wmgm.settings import WMGMMethod
from multiscale.networks import autoencoder
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import fit
from stages.common import previews
from stages.common.paths import PREVIEWS


def observer(part, decomposed, count: int = COUNT, training=TRAINING):
    return previews.observer(part, training, decomposed / SECTIONS[part.name]["dataset"], count)


def train(part, observe=None, scratch: str = "scratch", training=TRAINING, **options):
    checkpoints = Checkpoints(previews.Path(scratch), part.name, "key")
    return fit(part, training, 0, checkpoints, observe=observe, **options)


def solver_of(kind: str, name: str):
    """The section of the method's sampler with the solver of the previews."""
    solver = methods.preview(kind).SOLVER
    given = {
        "msf": {"scales": [solver]},
        "pyramidal": {"scales": [solver] * 2},
        "swd": {"solver": None if name in ("student", "adapter") else solver},
    }
    return methods.settings(kind).METHOD(kind=kind, **given.get(kind, {"solver": solver}))


@pytest.mark.parametrize("name", ["dit", "ssd", "sgm", "pyramidal", "teacher", "student", "adapter"])
def test_a_picture_is_what_the_sampler_makes_of_the_averaged_weights_by_then(name, decomposed):
    part, kept = build(name, decomposed), {}
    draw = observer(part, decomposed)

    def observe(seen, weights):
        draw(seen, weights)
        kept[seen] = ({key: value.clone() for key, value in weights.items()}, np.array(Image.open(latest)))

    latest, kind = PREVIEWS / name / "latest.png", part.config.kind
    train(part, observe)
    assert list(kept) == [16, 24, 32, 40, 48, 64, 72, 80, 88, 96]  # the first batch beyond each tenth of 96 images
    for seen in (16, 48, 96):
        weights, picture = kept[seen]
        model, out = build(name, decomposed), decomposed / f"out-{seen}"
        model.networks[part.main].load_state_dict(weights)
        out.mkdir()
        model.save(out)
        sampler = methods.sampler(kind).load_sampler(
            [out], solver_of(kind, name), autoencoder.Codec(None, 0), TRAINING.precision
        )
        labels = torch.arange(COUNT) % CLASSES
        images = to_pixels(sampler(list(range(COUNT)), labels))
        title = f"{name} after {seen} of 96 images"
        assert (picture == np.array(pictures.of_classes(images, labels, 1, COUNT, title))).all()
        assert images.float().std() > 1 and not torch.equal(images[0], images[3]), "no comparison of constants"
    assert not (kept[16][1] == kept[48][1]).all()


def of_two_scales(decomposed, given=None):
    """The frames of MSF's own sampler, both scales untrained; `given` stands for what scale 0 makes."""
    parts, frames = [build(name, decomposed) for name in ("msf-0", "msf-1")], {}
    nets, configs = [part.networks["net"] for part in parts], [part.config for part in parts]
    solvers = [methods.preview("msf").SOLVER] * 2
    sampler = MSFSampler(nets, configs, solvers, autoencoder.Codec(None, 0), TRAINING.precision)
    if given is not None:
        plain = sampler.next_target
        sampler.next_target = lambda targets, *rest: plain(targets, *rest) if targets else given
    labels = torch.arange(COUNT) % CLASSES
    frames["msf-1"] = sampler(list(range(COUNT)), labels, frames.__setitem__)
    return frames


def of_all_bands(decomposed, levels: tuple[int, ...], low=None, finer=None):
    """The frames of WMGM's own sampler; `low` stands for the coarse band, `finer` for the details of level 2."""
    names, frames = ("low", *("fine" if levels == (1,) else "details",)), {}
    coarse, maker = (build(name, decomposed) for name in names)
    makers = [(maker.config, maker.networks[maker.main])]
    method = WMGMMethod(kind="wmgm", solver=methods.preview("wmgm").SOLVER)
    sampler = WMGMSampler(coarse.config, coarse.networks["net"], makers, method, TRAINING.precision)
    plain, labels = sampler.detail_bands, torch.arange(COUNT) % CLASSES
    if low is not None:
        sampler.coarse_band = lambda *_: low
        sampler.detail_bands = lambda x, level, *rest: plain(x, level, *rest) if level in levels else finer
    frames["image"] = sampler(list(range(COUNT)), labels, frames.__setitem__)
    return frames


def test_a_part_of_several_shows_what_it_adds_to_what_is_real(decomposed):
    rows = {name: build(name, decomposed).data[torch.arange(COUNT)] for name in ("msf-1", "details")}
    bands = rows["details"]
    expected = {
        "msf-0": of_two_scales(decomposed)["4 px"],
        "msf-1": of_two_scales(decomposed, rows["msf-1"]["y0"])["msf-1"],
        "details": of_all_bands(decomposed, (1, 2), bands["ll"])["image"],
        "fine": of_all_bands(decomposed, (1,), bands["ll"], bands[detail(2)])["image"],
    }
    for name, images in expected.items():
        part = build(name, decomposed)
        found = observer(part, decomposed).images(part.networks[part.main].state_dict())
        assert torch.equal(found, to_pixels(images)), name
        assert found.float().std() > 1


def test_the_coarse_band_is_a_small_image(decomposed):
    part = build("low", decomposed)
    found = observer(part, decomposed).images(part.networks["net"].state_dict())
    assert torch.equal(found, to_pixels(of_all_bands(decomposed, (1, 2))["4 px"]))


@pytest.mark.parametrize("name", ["dit", "ssd", "details", "adapter"])
def test_a_training_that_is_watched_ends_in_the_same_bits(name, decomposed):
    expected = train(build(name, decomposed), scratch="alone")
    part = build(name, decomposed)
    states = []
    draw = observer(part, decomposed)

    def observe(seen, weights):
        before, nets = torch.get_rng_state(), [net.training for net in part.networks.values()]
        draw(seen, weights)
        states.append(torch.equal(before, torch.get_rng_state()) and all(nets) and torch.is_grad_enabled())
        assert [net.training for net in part.networks.values()] == nets

    found = train(part, observe)
    assert len(states) == 10 and all(states)
    assert found.history == expected.history
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=0)


def test_latents_are_decoded(decomposed):
    torch.manual_seed(1)
    vae = autoencoder.build(1, 1, (8, 8), 1, 4)
    vae.save_pretrained(decomposed / "full/autoencoder", safe_serialization=True)
    (decomposed / "full/autoencoder" / IMAGES).write_text('{"channels": 1}')
    part = build("dit", decomposed)
    draw, decoded = observer(part, decomposed), []
    draw._codec.vae.decoder.register_forward_hook(lambda module, given, images: decoded.append(images))
    found = draw.images(part.networks["net"].state_dict())
    assert found.shape == (COUNT, 1, 16, 16) and torch.equal(found, to_pixels(to_unit(decoded[0])))
    assert found.float().std() > 1, "no comparison of constants"


def test_a_picture_that_draws_random_numbers_moves_no_random_stream(decomposed):
    part = build("dit", decomposed)
    draw, before = observer(part, decomposed), torch.get_rng_state()

    def sampler_of(*given):
        torch.rand(1)
        return methods.preview("msf").sampler_of(*given)

    draw.method = SimpleNamespace(sampler_of=sampler_of)
    draw(48, part.networks["net"].state_dict())
    assert torch.equal(before, torch.get_rng_state())
    assert (PREVIEWS / "dit/050.png").exists()


def test_pictures_are_numbered_by_their_tenth_and_those_of_a_longer_training_before_go(decomposed, capfd):
    part = build("details", decomposed)
    train(part, observer(part, decomposed))
    folder = PREVIEWS / "details"
    numbers = [f"{10 * tenth:03}.png" for tenth in range(1, 11)]
    assert sorted(path.name for path in folder.iterdir()) == [*numbers, "latest.png"]
    assert (folder / "latest.png").read_bytes() == (folder / "100.png").read_bytes()
    assert Image.open(folder / "020.png").info["Title"] == "details after 24 of 96 images"
    assert capfd.readouterr().err == f"what details has learnt so far: {folder}/latest.png\n"

    weights = part.networks["generator"].state_dict()
    observer(part, decomposed)(24, weights)
    assert sorted(path.name for path in folder.iterdir()) == ["010.png", "020.png", "latest.png"]
    coarse = replace(TRAINING, batch=32, images=80)
    part = build("details", decomposed)
    train(part, observer(part, decomposed, training=coarse), "coarse", coarse)
    assert sorted(path.name for path in folder.iterdir()) == ["010.png", "020.png", "040.png", "080.png", "100.png"] + [
        "latest.png"
    ]
    assert Image.open(folder / "latest.png").info["Title"] == "details after 80 of 80 images"


def test_a_resumed_training_goes_on_with_its_tenths(decomposed):
    def stop(seen):
        if seen == 48:
            raise KeyboardInterrupt

    seen, part = [], build("dit", decomposed)
    with pytest.raises(KeyboardInterrupt):
        train(part, lambda images, weights: seen.append(images), on_step=stop, checkpoint_seconds=0.0)
    assert seen == [16, 24, 32, 40]
    train(build("dit", decomposed), lambda images, weights: seen.append(images))
    assert seen == [16, 24, 32, 40, 48, 64, 72, 80, 88, 96]


def test_a_picture_that_fails_is_a_warning_and_the_training_goes_on(decomposed, monkeypatch):
    part = build("dit", decomposed)
    draw = observer(part, decomposed)
    monkeypatch.setattr(draw, "method", None)
    with pytest.warns(UserWarning, match="no picture of dit: AttributeError: ") as caught:
        result = train(part, draw)
    assert len(caught) == 10 and len(result.weights) > 0
    with pytest.raises(UserWarning, match="no picture of dit"):  # an error in all other tests
        draw(48, result.weights)


def test_who_draws_and_who_does_not(decomposed, monkeypatch):
    part = build("dit", decomposed)
    draw = partial(previews.observer, part, TRAINING)
    assert draw(decomposed / "full", 0) is None and draw(None, 8) is None
    for kind in ("vae", "classifier"):
        part.config = part.config.model_copy(update={"kind": kind})
        assert draw(decomposed / "full", 8) is None
    part = build("dit", decomposed)
    assert observer(part, decomposed)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert observer(part, decomposed) is None


def test_the_stages_of_parts_leave_pictures_and_those_of_other_networks_none(trained):
    found = [path.relative_to(trained / PREVIEWS) for path in trained.glob(f"{PREVIEWS}/*/*.png")]
    expected = [f"{name}/{file}.png" for name in ("dit", "msf-0", "msf-1") for file in ("100", "latest")]
    assert sorted(map(str, found)) == expected


def test_rows_show_each_class_in_turn_as_often_as_it_goes():
    labels = torch.tensor([2, 2, 0, 2, 1, 0])
    assert previews.of_each_class(labels, 7).tolist() == [2, 4, 0, 5, 4, 1, 2]
    assert previews.of_each_class(torch.arange(20), 10).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    assert previews.of_each_class(torch.zeros(5).long(), 3).tolist() == [0, 1, 2]
