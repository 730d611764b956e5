"""The peers' side of `benchmarks.peers`: diffusers' networks, pipelines and training example, torch-fidelity's API."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.ddpm_vs_diffusers import theirs as unet
from benchmarks.dit_vs_diffusers import theirs as dit
from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import autocast
from multiscale.evaluation import features

make_torchvision_importable()
import torch_fidelity  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTPipeline  # noqa: E402
from diffusers.models import AutoencoderKL  # noqa: E402
from diffusers.optimization import get_scheduler  # noqa: E402
from diffusers.training_utils import EMAModel  # noqa: E402
from torch_fidelity.feature_extractor_base import FeatureExtractorBase  # noqa: E402

__all__ = ["dit", "encode", "evaluate", "sample_dit", "sample_unet", "trainer", "unet"]


def trainer(net: nn.Module, data: Tensor, labels: Tensor, batch: int, precision: str, conditional: bool):
    """One step of diffusers' example examples/unconditional_image_generation/train_unconditional.py.

    Its order, its optimiser, its EMA and its Accelerator; images and labels lie in memory. A network with classes gets
    them as further argument.
    """
    AcceleratorState._reset_state()  # the precision belongs to the process
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=True)
    average = EMAModel(
        net.parameters(), decay=0.9999, use_ema_warmup=True, model_cls=type(net), model_config=net.config
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    loader = DataLoader(TensorDataset(data, labels), batch_size=batch, shuffle=True)
    rates = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000)
    net, optimizer, loader, rates = accelerator.prepare(net.train(), optimizer, loader, rates)
    scheduler = DDPMScheduler(1000)

    def batches():
        while True:
            yield from loader

    upcoming = batches()

    def step() -> None:
        clean, classes = next(upcoming)
        noise = torch.randn(clean.shape)
        timesteps = torch.randint(0, 1000, (len(clean),)).long()
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with accelerator.accumulate(net):
            given = {"class_labels": classes} if conditional else {}
            loss = F.mse_loss(net(noisy, timesteps, **given).sample.float(), noise.float())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.step(net.parameters())

    return step


def sample_unet(net: nn.Module, batch: int, steps: int) -> Callable[[], object]:
    """DDPMPipeline, from noise to an array of images."""
    pipeline = DDPMPipeline(net.eval(), DDPMScheduler(1000, prediction_type="sample"))
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch, num_inference_steps=steps, output_type="np")


def sample_dit(
    net: nn.Module, vae: AutoencoderKL, labels: Tensor, steps: int, guidance_scale: float, precision: str
) -> Callable[[], object]:
    """DiTPipeline with DDIM, from noise to an array of images. Its label of 'no class' is 1000."""
    pipeline = DiTPipeline(net.eval(), vae, DDIMScheduler(1000))
    pipeline.set_progress_bar_config(disable=True)
    classes = labels.tolist()

    def call() -> object:
        with autocast(precision, torch.device("cpu")):
            return pipeline(classes, guidance_scale, num_inference_steps=steps, output_type="np")

    return call


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """The posterior of uint8 images, as diffusers' examples call the autoencoder."""
    with autocast(precision, pixels.device):
        posterior = vae.encode(pixels.float() / 127.5 - 1).latent_dist
    return posterior.mean, posterior.std


class Images(Dataset):
    """uint8 images (N, 3, H, W), as torch-fidelity reads them."""

    def __init__(self, pixels: Tensor):
        self.pixels = pixels.expand(-1, 3, -1, -1).contiguous()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


class OurFeatures(FeatureExtractorBase):
    """Our extractor, as torch-fidelity calls one."""

    def __init__(self, name: str, features_list: list[str], **options: object):
        super().__init__(name, features_list)
        self.net = features.create(name, None, torch.device("cpu"))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "pooled", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "pooled"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = dict(zip(self.get_provided_features_list(), self.net(images)))
        return tuple(found[name] for name in self.features_list)


for name in features.EFFICIENTNETS:
    torch_fidelity.register_feature_extractor(name, OurFeatures)


def evaluate(extractor: str, generated: Images, real: Images, batch: int) -> dict[str, float]:
    """torch-fidelity's `calculate_metrics` by our extractor, with every metric of ours.

    `save_cpu_ram` loads in this process: its four loading processes take longer than images that lie in memory.
    """
    found: dict[str, float] = torch_fidelity.calculate_metrics(
        input1=generated,
        input2=real,
        feature_extractor=extractor,
        batch_size=batch,
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=min(1000, len(generated)),
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    return found
