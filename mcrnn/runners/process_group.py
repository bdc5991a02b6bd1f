"""How the workers of a data-parallel training talk to each other: by NCCL between GPUs, else by Gloo."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class _ProcessGroupBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the process group, without NCCL where PyTorch finds no GPU although Ray has assigned one."""
        if backend_config.backend == "nccl" and not all(worker_group.execute(torch.cuda.is_available)):
            backend_config = dataclasses.replace(backend_config, backend="gloo")
        super().on_start(worker_group, backend_config)


@dataclasses.dataclass
class ProcessGroupConfig(TorchConfig):
    """Ray's configuration of the process group, in which "nccl" stands for Gloo on machines without a GPU."""

    @property
    def backend_cls(self) -> type[_ProcessGroupBackend]:
        """The class that sets up the process group."""
        return _ProcessGroupBackend
