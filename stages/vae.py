"""Makes the autoencoder, in models/vae: trained here, a published one at a fixed revision, or none (pixels)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from multiscale.core.storage import atomic_folder, write_json
from multiscale.networks import autoencoder
from multiscale.networks.autoencoder import AutoencoderPart
from multiscale.training.part import Part
from stages import fitting
from stages.common import settings
from stages.common.harness import command
from stages.common.images import pixel_table
from stages.common.paths import IMAGES, SCRATCH, TIMINGS
from stages.common.paths import VAE as OUT
from stages.common.settings import BadInput
from stages.schema import VAE


def build(vae: VAE, channels: int) -> tuple[AutoencoderPart, dict]:
    """The part to train, on the training split."""
    net = autoencoder.build(channels, vae.latent_channels, tuple(vae.widths), vae.layers, vae.groups)
    return AutoencoderPart("vae", pixel_table("train"), net, vae.sides, vae.kl_weight), {}


def save(folder: Path, part: Part, config: dict) -> None:
    """In the form of diffusers, so that `AutoencoderKL.from_pretrained` reads it."""
    part.players["net"].vae.save_pretrained(folder, safe_serialization=True)


def publish(vae: VAE) -> None:
    """Copies a published autoencoder into models/vae."""
    try:
        net = autoencoder.kl_class().from_pretrained(
            vae.source,
            revision=vae.revision,
            subfolder=vae.subfolder or "",
            use_safetensors=True,
            cache_dir=None if Path(vae.source).exists() else SCRATCH / "hub",
        )
    except (OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise BadInput(
            f"{settings.EXPERIMENT}: vae.source: cannot load '{vae.source}' at {vae.revision}: {line}"
        ) from None
    with atomic_folder(OUT) as folder:
        net.save_pretrained(folder, safe_serialization=True)


def main() -> None:
    params = settings.load("seed", "run", "data", "vae")
    vae: VAE = params.vae
    if vae.kind == "train":
        made = partial(build, vae, params.data.channels)
        fitting.train(fitting.job("vae", made, vae, vae.training, params.seed, [IMAGES], OUT, save), params.run)
        return
    if vae.kind == "published":
        publish(vae)
    else:
        with atomic_folder(OUT) as folder:
            (folder / "README.md").write_text("No autoencoder: the models of this experiment work on pixels.\n")
    write_json(TIMINGS / "vae.json", {"train_seconds": 0.0})


if __name__ == "__main__":
    command(main, __doc__)
