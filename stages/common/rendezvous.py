"""The process group of a training on Ray workers, which listens on one address of each node and not on all."""

from __future__ import annotations

import os
import socket
from importlib import import_module
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch import distributed

LOOPBACK = ("127.0.0.1", "::1")
_Store: Any = distributed.TCPStore  # type: ignore[attr-defined]  # as torch has it


def config(interface: str | None) -> TorchConfig:
    """What Ray Train makes the group from.

    interface: of the collectives (gloo, NCCL); None: the loopback where Ray runs on it, else what they choose.
    """
    return _Config(interface=interface)


class _Backend(_TorchBackend):  # type: ignore[misc]  # Ray has no types
    def on_start(self, worker_group: Any, backend_config: _Config) -> None:
        worker_group.execute(_confine, backend_config.interface)
        super().on_start(worker_group, backend_config)


class _Config(TorchConfig):  # type: ignore[misc]
    def __init__(self, interface: str | None):
        super().__init__()
        self.interface = interface

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def _confine(interface: str | None) -> None:
    """Before a worker joins the group: names the interface, and has torch's store listen on one address."""
    import ray

    if interface is None and ray.util.get_node_ip_address() in LOOPBACK:
        interface = "lo"
    if interface:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        os.environ["NCCL_SOCKET_IFNAME"] = f"={interface}"  # without the sign: all whose names begin so
    # Ray lets torch make the store from an address, and torch takes that for clients alone: the server listens on all.
    setattr(import_module("torch.distributed.rendezvous"), "TCPStore", _store)  # noqa: B010  # a function hides its name


def _store(host_name: str, port: int, is_master: bool, **options: Any) -> Any:
    """torch's store, whose server listens on the address that its clients are told and no other."""
    if is_master:
        family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
        with socket.create_server((host_name, port), family=family) as server:
            options["master_listen_fd"] = server.detach()
    return _Store(host_name=host_name, port=port, is_master=is_master, **options)
