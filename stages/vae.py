"""Provides the autoencoder in models/vae: trained here, a published one at a fixed revision, or none (pixels)."""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__)

from functools import partial
from pathlib import Path, PurePosixPath

from multiscale.core.storage import sealed_folder
from multiscale.networks import autoencoder
from multiscale.networks.autoencoder import AutoencoderPart
from stages.common import fetch, fitting, images
from stages.common.errors import BadInput
from stages.common.paths import EXPERIMENT, TRAIN
from stages.common.paths import VAE as OUT
from stages.schema import Experiment
from stages.schema.data import PublishedVAE, TrainedVAE

FILES = ["config.json", "diffusion_pytorch_model*.safetensors*"]


def build(vae: TrainedVAE, channels: int) -> AutoencoderPart:
    """The part to train on the training split."""
    net = autoencoder.build(channels, vae.latent_channels, tuple(vae.widths), vae.layers, vae.groups)
    return AutoencoderPart("vae", images.pixel_table("train"), net, vae.resolutions, vae.kl_weight)


def publish(vae: PublishedVAE) -> None:
    """Copies a published autoencoder into models/vae."""
    source, inner = Path(vae.source), vae.subfolder or ""
    if not source.exists():
        files = [str(PurePosixPath(inner, name)) for name in FILES]
        source = fetch.snapshot(vae.source, str(vae.revision), "vae.source", files)
    try:
        net = autoencoder.kl_class().from_pretrained(
            str(source), subfolder=inner, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        line += f"; {fetch.by_hand(vae.source, vae.revision, 'vae.source')}" if vae.revision else ""
        raise BadInput(f"{EXPERIMENT}: vae.source: cannot load '{vae.source}' at {vae.revision}: {line}") from None
    net.register_to_config(_name_or_path=vae.source)  # not where this machine keeps the snapshot
    with sealed_folder(OUT) as folder:
        net.save_pretrained(folder, safe_serialization=True)


def main(params: Experiment) -> None:
    vae = params.vae
    if isinstance(vae, TrainedVAE):
        images.check("train")
        made = partial(build, vae, params.data.channels)
        fitting.train(fitting.job("vae", made, vae, params.seed, [TRAIN], OUT, "vae"), params.run)
    elif isinstance(vae, PublishedVAE):
        publish(vae)
    else:
        with sealed_folder(OUT) as folder:
            (folder / "README.md").write_text("No autoencoder: the models of this experiment work on pixels.\n")
