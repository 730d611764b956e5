"""A part: a network with its training data and loss, which is all that the training loop needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field
from torch import Tensor, nn

from multiscale.core import models
from multiscale.core.settings import Count, From0, Images, Positive, Precision, Section
from multiscale.core.streams import Draws, Held

Nets = Mapping[str, nn.Module]
Batch = Mapping[str, Tensor]
Loss = tuple[Tensor, dict[str, Tensor]]  # the scalar to minimise, and further scalars for the history


class Training(Section):
    """Budget and optimiser. Budgets and intervals count images, independently of the batch size."""

    images: Images
    """budget in training images"""
    batch: Positive = 32
    """images a step, over all workers"""
    lr: Annotated[float, Field(gt=0)] = 2e-3
    """peak learning rate"""
    warmup_images: Count = 2000
    """linear rise of the learning rate"""
    decay: Literal["constant", "cosine"] = "cosine"
    """of the learning rate after the warm-up; cosine falls to zero"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the weights of linear layers and convolutions, AdamW for the rest"""
    weight_decay: From0 = 0.0
    """of all weights, decoupled"""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """of AdamW"""
    clip: From0 = 1.0
    """largest gradient norm; 0: no clipping"""
    ema_images: Count = 4000
    """half-life of the moving average of the weights, in images, at most 5 % of those seen; 0: none"""
    precision: Precision = "auto"
    """auto: bf16 where the hardware multiplies it natively; a GPU multiplies what is fp32 in TF32"""
    microbatch: Positive | None = None
    """images a pass of a worker, of which gradients add up to those of the batch; null: all in one"""
    recompute: bool = False
    """activation checkpointing: the backward pass computes again what blocks would keep"""
    compile: bool = False
    """torch.compile each network, the frozen ones too, for each resolution"""
    log_images: Images = 2000
    """images between two rows of the history"""
    validation_images: Annotated[int, Field(ge=0, le=10**6)] = 32
    """held-out images of the validation loss, at each tenth of the budget; 0: none"""


class Data(Protocol):
    """Rows fetched by index, such as a `multiscale.core.storage.Table`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]: ...


class Part:
    """The training of one network of a method.

    Each of the `networks` has an optimiser; most parts have one network. The moving average of the network `main` is
    the result, and `config` rebuilds it. A part with several networks (a discriminator, a fake score) lists in `turns`
    those that a step updates. `frozen` networks are used by the loss and not trained. `held_out` are rows like those of
    the data that no step sees, for the validation loss.
    """

    main = "net"
    partial = False  # whether a step may leave some parameters unused
    couples = ""  # what makes the loss of an image depend on the others of its batch, which micro-batches would change
    twice: Sequence[str] = ()  # networks whose gradient is differentiated again
    frozen: Mapping[str, nn.Module] = {}
    rates: Mapping[str, float] = {}  # factors on a network's learning rate, 1 by default
    held_out: Data | None = None
    cycle = 1  # steps after which turns and what a step takes come round, where they do
    views = 1  # in how many ways the part sees an image: resolutions, levels, steps

    def __init__(self, name: str, data: Data, networks: dict[str, nn.Module], config: models.ModelConfig):
        self.name, self.data, self.networks, self.config = name, data, networks, config

    def turns(self, step: int) -> Sequence[str]:
        """The networks to update at this step, in order."""
        return (self.main,)

    def odds(self) -> Mapping[str, Mapping[int, int]]:
        """What a step draws that decides its cost: by the name of a `Draws.choice`, values and how often each comes.

        A value may stand for all that cost the same, and then comes as often as they do together.
        """
        return {}

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        """The loss of `network` on a batch, and further scalars for the history.

        Calls the networks in `nets`, which may be wrapped for several workers.
        """
        raise NotImplementedError

    def errors(self, net: nn.Module, batch: Batch, held: Held) -> Tensor | None:
        """The error (N,) of the main network on each held-out image, seen the way `held.view`; None: there is no such.

        It is comparable where the training loss is not: without dropped labels, weights from the settings, adversaries.
        """
        return None

    def examine(self) -> dict[str, Any]:
        """Measurements of the trained part, with the averaged weights in `main`."""
        return {}

    def save(self, folder: Path) -> None:
        """Writes the model into an existing folder, with the averaged weights in `main`."""
        models.save(folder, self.networks[self.main].state_dict(), self.config)


def trainable(networks: Nets) -> dict[str, list[nn.Parameter]]:
    """The parameters of each network that want gradients; what lies frozen beneath an adapter does not."""
    return {name: [p for p in net.parameters() if p.requires_grad] for name, net in networks.items()}


def let_through(trained: Mapping[str, Sequence[nn.Parameter]], *names: str) -> None:
    """Lets gradients through to the trained parameters of the networks that are named, and to no others."""
    for name, parameters in trained.items():
        for parameter in parameters:
            parameter.requires_grad_(name in names)
