"""A part: one network that is trained, the data it is trained on, and its loss. The training loop needs no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from multiscale.core.streams import Draws

Nets = Mapping[str, nn.Module]


class Data(Protocol):
    """Rows that can be fetched by index; `multiscale.core.storage.Table` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]: ...


class Part:
    """One trained network of a method.

    `players` are the networks that have an optimiser; most parts have one. `main` names the player whose moving
    average is the result. A part with opponents (a discriminator, a fake score) lists them as further players and
    says in `turns` who moves at a step. Where a step runs only some of a network's layers, `partial` says so.
    `frozen` are networks that the loss asks and nobody trains: the loop places them as it does the players.
    """

    main = "net"
    partial = False  # whether a step may leave some parameters out
    frozen: Mapping[str, nn.Module] = {}
    rates: Mapping[str, float] = {}  # a player's learning rate as a factor of the schedule's, 1 where there is none

    def __init__(self, name: str, data: Data, players: dict[str, nn.Module]):
        self.name, self.data, self.players = name, data, players

    def turns(self, step: int) -> Sequence[str]:
        """The players that are updated at this step, in order."""
        return (self.main,)

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar that `player` descends on a batch, and further scalars for the history.

        `nets` holds the players as they must be called (wrapped for several workers where they are).
        """
        raise NotImplementedError

    def examine(self) -> dict:
        """What is measured of the trained part beside its loss, once its averaged weights are in `main`."""
        return {}
