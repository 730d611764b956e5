"""Low-rank adapters (LoRA, arXiv 2106.09685) on a diffusion transformer, by peft, and the network beneath them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from multiscale.core.compat import make_torchvision_importable

if TYPE_CHECKING:
    from peft import PeftModel

LAYERS = r"blocks\.\d+\.(attention\.(qkv|proj)|mlp\.[02])"  # attention and MLP of each block, as published


def adapted(net: nn.Module, rank: int, layers: str = LAYERS) -> PeftModel:
    """The network, frozen, with an adapter of scale 1 on `layers` that changes nothing yet: A is Gaussian, B zero."""
    make_torchvision_importable()
    from peft import LoraConfig, get_peft_model  # takes seconds to import, and only adapters need it

    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers)
    return get_peft_model(net, config)


def merged(net: PeftModel) -> nn.Module:
    """The plain network with its adapter merged into the weights; a network without an adapter as it is."""
    plain: nn.Module = net.merge_and_unload() if hasattr(net, "merge_and_unload") else net
    return plain


class Beneath:
    """The network beneath an adapter as it was before any training: a teacher that costs no second copy."""

    def __init__(self, net: PeftModel):
        self.net = net

    def __call__(self, *given: Tensor, **options: int | bool) -> Tensor:
        with self.net.disable_adapter():
            output: Tensor = self.net(*given, **options)
        return output
