"""Settings that could make a step fit, ordered by the FLOPs they cost, with an estimate of the memory of each.

What the towers keep for the backward pass, and parameters and moments a device, are known without a compiler. When XLA
refuses a program it reports what that would have needed, which corrects the estimates of other settings.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from clip_jax.config.experiment import Config
from clip_jax.distributed.sharding import make_abstract_mesh
from clip_jax.models import ModelConfig, ResNetConfig
from clip_jax.planning.params import param_table
from clip_jax.planning.step import Towers
from clip_jax.training.training import Training

REMATS = ("none", "dots", "named", "attention", "full")
HEADROOM = 0.95  # of a device's memory
RESNET_SHARE = 0.8  # of the traced bytes is what XLA needs of a ResNet, for it fuses more; measured on RN50x64
MIN_IMAGES = 32  # of a device in a microbatch, by whose statistics a ResNet's batch norms normalise


class Setting(NamedTuple):
    """How a step is split so that it fits; what is learned stays the same, except for a ResNet's batch statistics."""

    remat: str
    fsdp: int
    num_microbatches: int

    @staticmethod
    def of(config: Config) -> "Setting":
        return Setting(config.model.remat, config.sharding.fsdp, config.train.num_microbatches)

    def apply(self, config: Config) -> Config:
        """The config with these settings; fsdp takes its devices from data."""
        return dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, remat=self.remat),  # type: ignore[arg-type]
            sharding=dataclasses.replace(config.sharding, data=-1, fsdp=self.fsdp),
            train=dataclasses.replace(config.train, num_microbatches=self.num_microbatches),
        )

    def flags(self) -> str:
        """As flags of `clip-jax train`."""
        return (
            f"--config.model.remat={self.remat} --config.sharding.fsdp={self.fsdp} "
            f"--config.train.num_microbatches={self.num_microbatches}"
        )


class Fitter:
    """The possible settings of a config on num_devices devices, and what each would need."""

    def __init__(self, config: Config, num_devices: int):
        self._config = config
        self._num_devices = num_devices
        self._towers = Towers(config)
        self._state_by_fsdp: dict[int, tuple[int, int]] = {}

    def cost(self, setting: Setting) -> float:
        """FLOPs of the towers for one pair relative to no recomputation."""
        again = self._forward if setting.num_microbatches > 1 else 0
        return (self._towers.flops(setting.remat) + again) / self._towers.flops("none")

    @property
    def _forward(self) -> int:
        return self._towers.flops("none") // 3  # the backward pass takes two products for each one

    def estimate(self, setting: Setting, share: float | None = None) -> float:
        """Bytes that a device needs at least: its state, and `share` of what the towers keep as traced."""
        if share is None:
            share = RESNET_SHARE if is_resnet(self._config.model) else 1
        return self._state(setting) + share * self._kept(setting)

    def share(self, setting: Setting, needed_bytes: float) -> float:
        """XLA's bytes besides the state over those that the towers keep as traced: XLA pads, fuses and has more."""
        return (needed_bytes - self._state(setting)) / self._kept(setting)

    def settings(self) -> Iterator[Setting]:
        """All settings, the cheapest first: by FLOPs, then by microbatches, then by fsdp."""
        rows = self._config.train.global_batch_size // self._num_devices * self._config.sharding.tensor
        fewest = MIN_IMAGES if is_resnet(self._config.model) else 1
        found = [
            Setting(remat, fsdp, microbatches)
            for remat in REMATS
            for fsdp in self._fsdp_sizes()
            for microbatches in _powers_of_two(1, max(rows // fewest, 1))
            if rows % microbatches == 0
        ]
        return iter(sorted(found, key=lambda s: (round(self.cost(s), 3), s.num_microbatches, s.fsdp)))

    def _fsdp_sizes(self) -> list[int]:
        sizes = []
        for fsdp in _powers_of_two(self._config.sharding.fsdp, self._num_devices // self._config.sharding.tensor):
            try:
                self._state(Setting("none", fsdp, 1))
            except ValueError:  # it no longer divides the devices or the parameters
                break
            sizes.append(fsdp)
        return sizes

    def _kept(self, setting: Setting) -> float:
        rows = self._config.train.global_batch_size // self._num_devices * self._config.sharding.tensor
        return self._towers.kept_bytes(setting.remat, max(rows // setting.num_microbatches, 1))

    def _state(self, setting: Setting) -> float:
        """Parameters, moments and, with microbatches, the sum of gradients."""
        if setting.fsdp not in self._state_by_fsdp:
            config = setting.apply(self._config)
            mesh = make_abstract_mesh(config.sharding, self._num_devices)
            rows = param_table(Training(config, mesh).abstract())
            self._state_by_fsdp[setting.fsdp] = sum(r.param_bytes for r in rows), sum(r.optimizer_bytes for r in rows)
        params, moments = self._state_by_fsdp[setting.fsdp]
        return params * (2 if setting.num_microbatches > 1 else 1) + moments


def is_resnet(model: ModelConfig) -> bool:
    """Whether the model has batch norms, so that the number of microbatches changes what is learned."""
    return isinstance(model.vision, ResNetConfig)


def _powers_of_two(first: int, last: int) -> list[int]:
    sizes = []
    while first <= last:
        sizes.append(first)
        first *= 2
    return sizes
