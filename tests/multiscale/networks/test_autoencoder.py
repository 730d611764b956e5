"""The autoencoder learns to reconstruct and is saved and loaded unchanged; without one, pixels pass through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRAINING, replace
from huggingface_hub.utils import filter_repo_objects

from multiscale.core import device
from multiscale.core.resize import area_to
from multiscale.core.storage import Table
from multiscale.core.streams import Draws
from multiscale.networks import autoencoder
from multiscale.networks.autoencoder import AutoencoderPart, Codec
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import fit

CPU = torch.device("cpu")


def build(channels: int = 1, widths: tuple[int, ...] = (8, 16)) -> torch.nn.Module:
    """A small autoencoder with no weight at its default."""
    torch.manual_seed(0)
    return autoencoder.build(channels, 4, widths, 1, 4).eval()


def blobs(count: int, resolution: int = 16) -> np.ndarray:
    """Grey images with one bright square each, uint8 (count, 1, resolution, resolution)."""
    random = np.random.default_rng(0)
    pictures = np.zeros((count, 1, resolution, resolution), np.uint8)
    for picture, (top, left) in zip(pictures, random.integers(0, resolution // 2, (count, 2))):
        picture[0, top : top + resolution // 2, left : left + resolution // 2] = random.integers(100, 256)
    return pictures


def part_of(net: torch.nn.Module, resolutions: list[int], kl_weight: float = 1e-3) -> AutoencoderPart:
    return AutoencoderPart("vae", Table({"pixels": blobs(64)}), net, resolutions, kl_weight)


def test_reconstruction_gets_better_within_a_few_dozen_steps(tmp_path):
    changes = {"decay": "cosine", "ema_images": 64, "precision": "auto", "log_images": 160}
    training = replace(TRAINING, images=1280, batch=16, lr=5e-3, warmup_images=64, **changes)
    part = part_of(build(), [8, 16])
    result = fit(part, training, 0, Checkpoints(tmp_path, "vae", "key"), checkpoint_seconds=1000)
    assert result.history[-1]["l1"] < 0.4 * result.history[0]["l1"]
    assert {"loss", "l1", "kl", "grad_norm", "lr", "images"} == set(result.history[0])
    part.networks["net"].load_state_dict(result.weights)
    net = next(module for module in part.networks["net"].modules() if isinstance(module, autoencoder.kl_class()))
    images = torch.from_numpy(blobs(64)) / 127.5 - 1
    codec = Codec(net.eval(), 1)
    error = (codec.decode(codec.encode(images)[0]) - images).abs().mean()
    assert error < 0.5 * (images - images.mean()).abs().mean(), "the averaged weights reconstruct too"


def test_a_step_trains_one_resolution_and_every_resolution_gets_its_turn(monkeypatch):
    net = build()
    part, seen = part_of(net, [8, 12, 16]), []
    monkeypatch.setattr(net, "encode", lambda x, encode=net.encode: seen.append(x.shape[-1]) or encode(x))
    batch = part.data[torch.arange(2)]
    for step in range(60):
        part.loss("net", part.networks, batch, draws(step))
    for resolution in (8, 12, 16):
        assert seen.count(resolution) == pytest.approx(20, abs=10)
    assert len(seen) == 60


def draws(step: int) -> Draws:
    return Draws(0, "vae", step, 2, slice(0, 2), CPU)


def test_the_loss_is_the_reconstruction_error_and_the_weighted_divergence_from_a_unit_gaussian():
    net = build()
    losses = {weight: part_of(net, [16], weight) for weight in (0.0, 0.5)}
    images = torch.from_numpy(blobs(64)[:2]) / 127.5 - 1
    values = {w: part.loss("net", part.networks, part.data[torch.arange(2)], draws(0)) for w, part in losses.items()}
    posterior = net.encode(images).latent_dist
    latents = posterior.mean + posterior.std * draws(0).normal("posterior", 4, 8, 8)
    error = (net.decode(latents).sample - images).abs().mean()
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
    ).mean()
    torch.testing.assert_close(values[0.0][0], error)
    torch.testing.assert_close(values[0.5][0], error + 0.5 * divergence)
    torch.testing.assert_close(values[0.5][1], {"l1": error, "kl": divergence})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("widths, factor", [((8,), 1), ((8, 16), 2), ((8, 8, 16), 4)])
def test_latents_are_smaller_by_the_factor(widths, factor, channels):
    codec = Codec(build(channels, widths), channels)
    assert codec.factor == factor
    for resolution in (16, 24):
        mean, std = codec.encode(torch.rand(2, channels, resolution, resolution) * 2 - 1)
        assert mean.shape == std.shape == (2, codec.latent_channels, resolution // factor, resolution // factor)
        assert (std > 0).all() and mean.std() > 0
        assert codec.decode(mean).shape == (2, channels, resolution, resolution)


def test_an_rgb_autoencoder_takes_and_gives_grey_images():
    net, grey = build(3), torch.rand(2, 1, 16, 16) * 2 - 1
    on_grey, on_rgb = Codec(net, 1), Codec(net, 3)
    mean, std = on_grey.encode(grey)
    posterior = net.encode(grey.repeat(1, 3, 1, 1)).latent_dist
    torch.testing.assert_close((mean, std), (posterior.mean, posterior.std))
    torch.testing.assert_close(on_rgb.encode(grey.repeat(1, 3, 1, 1)), (mean, std))
    images = on_grey.decode(mean)
    assert images.shape == (2, 1, 16, 16)
    torch.testing.assert_close(images, net.decode(mean).sample.mean(1, keepdim=True))
    torch.testing.assert_close(on_rgb.decode(mean), net.decode(mean).sample)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_autoencoder_is_the_identity(channels, tmp_path):
    (tmp_path / "README.md").write_text("pixels")
    codec = autoencoder.load(tmp_path, channels)
    images = torch.randn(2, channels, 6, 6)
    mean, std = codec.encode(images)
    assert codec.factor == 1 and codec.latent_channels == channels
    assert torch.equal(mean, images) and not std.any()
    assert torch.equal(codec.decode(mean), images)


def same_codec(one: Codec, other: Codec) -> bool:
    images = torch.from_numpy(blobs(2)) / 127.5 - 1
    mean, std = one.encode(images)
    return all(map(torch.equal, (mean, std, one.decode(mean)), (*other.encode(images), other.decode(mean))))


def test_a_saved_autoencoder_loads_bit_for_bit(tmp_path):
    net = build()
    net.save_pretrained(tmp_path, safe_serialization=True)
    codec = autoencoder.load(tmp_path, 1)
    assert same_codec(codec, Codec(net, 1))
    assert not codec.vae.training and not any(p.requires_grad for p in codec.parameters())
    net.decoder.conv_out.weight.data.mul_(1.001)
    assert not same_codec(codec, Codec(net, 1)), "the comparison sees a change"


@pytest.mark.parametrize("subfolder", [None, "vae"])
def test_a_published_autoencoder_is_taken_from_a_folder(subfolder, tmp_path, monkeypatch):
    from stages.schema.data import PublishedVAE
    from stages.vae import publish

    net = build(3, (8, 8, 16, 16))
    net.save_pretrained(tmp_path / "hub" / (subfolder or ""), safe_serialization=True)
    monkeypatch.chdir(tmp_path)
    publish(PublishedVAE(kind="published", source=str(tmp_path / "hub"), subfolder=subfolder))
    codec = autoencoder.load(tmp_path / "models" / "vae", 1)
    assert codec.factor == 8
    assert same_codec(codec, Codec(net, 1))
    assert json.loads((tmp_path / "models/vae/config.json").read_text())["block_out_channels"] == [8, 8, 16, 16]


@pytest.mark.parametrize("subfolder", [None, "vae"])
def test_of_a_hub_the_files_of_the_autoencoder_are_fetched_alone(subfolder, tmp_path, monkeypatch):
    from stages.schema.data import PublishedVAE
    from stages.vae import publish

    hub, inner = tmp_path / "hub", Path(subfolder or "")
    build().save_pretrained(hub / inner, safe_serialization=True)
    for other in ("model.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"):
        (hub / other).parent.mkdir(exist_ok=True)
        (hub / other).touch()

    def snapshot_download(name, repo_type, revision, cache_dir, allow_patterns, ignore_patterns):
        assert (name, repo_type, revision, cache_dir) == ("them/model", "model", "v1", Path(".scratch/hub"))
        files = [path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file()]
        for each in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (cache_dir / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(hub / each, cache_dir / each)
        return str(cache_dir)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    publish(PublishedVAE(kind="published", source="them/model", revision="v1", subfolder=subfolder))
    fetched = {path.relative_to(".scratch/hub") for path in Path(".scratch/hub").rglob("*") if path.is_file()}
    assert fetched == {inner / "config.json", inner / "diffusion_pytorch_model.safetensors"}
    assert same_codec(autoencoder.load(Path("models/vae"), 1), Codec(build(), 1))
    assert json.loads(Path("models/vae/config.json").read_text())["_name_or_path"] == "them/model"


def test_a_folder_without_an_autoencoder_is_refused_in_one_line_and_leaves_the_old_one(tmp_path, monkeypatch):
    from stages.common.errors import BadInput
    from stages.schema.data import PublishedVAE
    from stages.vae import publish

    monkeypatch.chdir(tmp_path)
    build().save_pretrained(tmp_path / "models" / "vae", safe_serialization=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="vae.source.*empty") as refused:
        publish(PublishedVAE(kind="published", source="empty"))
    assert "\n" not in str(refused.value)
    assert same_codec(autoencoder.load(tmp_path / "models" / "vae", 1), Codec(build(), 1))


def test_auto_precision_is_bf16_where_that_is_native_and_fp32_elsewhere(monkeypatch):
    for native, resolved in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device, "bf16_is_native", lambda _, native=native: native)
        assert device.resolve_precision("auto", CPU) == resolved
        assert [device.resolve_precision(given, CPU) for given in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_a_precision_is_the_one_that_products_are_computed_in():
    codec, images = Codec(build(), 1), torch.from_numpy(blobs(2)) / 127.5 - 1
    found = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with device.autocast(precision, CPU):
            found[precision] = codec.encode(images)[0]
        assert found[precision].dtype == dtype
    torch.testing.assert_close(found["bf16"].float(), found["fp32"], rtol=0.1, atol=0.1)


def test_images_are_shrunk_by_averaging_areas():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(area_to(x, 2), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert area_to(x, 4) is x
