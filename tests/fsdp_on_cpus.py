"""Runs a recipe under FSDP2 in CPU processes. accelerate only supports GPUs, so this script replaces its choice of device.

    accelerate launch --config_file launch/accelerate/fsdp2.yaml --num_processes 2 tests/fsdp_on_cpus.py recipe.yaml
"""

import sys

import accelerate.state
import torch
from accelerate.utils import DistributedType

import lore.run.devices
import lore.run.runner

accelerate.state.PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
accelerate.state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
lore.run.devices.device_arguments.__code__ = (lambda: {"ddp_backend": "gloo"}).__code__
lore.run.runner.settle_devices = lambda: None

if __name__ == "__main__":
    lore.run.devices.leave(lore.run.runner.run_command(sys.argv[1:]))
