"""Runs a recipe in a launched process with the stand-in of test_vllm_rollouts.py in place of vLLM, on CPUs and in bfloat16. Prints
how far the sampler's first adapted weight has moved from the base at each hand-over.

    accelerate launch --config_file launch/accelerate/zero3.yaml --num_processes 2 hand_over_stand_in.py zero3 recipe.yaml
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
if sys.argv[1] == "fsdp2":
    import fsdp_on_cpus  # noqa: F401

import torch  # noqa: E402
import transformers.integrations.deepspeed as deepspeed  # noqa: E402
import transformers.training_args  # noqa: E402
from test_vllm_rollouts import StandIn  # noqa: E402
from trl.generation.vllm_generation import VLLMGeneration  # noqa: E402

from lore.run.devices import leave  # noqa: E402
from lore.run.runner import run_command  # noqa: E402
from lore.train.rl.grpo import GRPO  # noqa: E402

made = []


class Noted(StandIn):
    def __init__(self, *arguments):
        config, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None  # not sharded itself
        sharded, os.environ["ACCELERATE_USE_FSDP"] = os.environ.get("ACCELERATE_USE_FSDP", "false"), "false"
        super().__init__(*arguments)
        deepspeed._hf_deepspeed_config_weak_ref, os.environ["ACCELERATE_USE_FSDP"] = config, sharded
        self.base = next(value.clone() for name, value in self.weights.items() if "q_proj" in name).bfloat16()
        self.moved = []

    def load_weights(self, weights):
        weights = list(weights)
        assert all(type(value) in (torch.Tensor, torch.nn.Parameter) and value.dtype == torch.bfloat16 for _, value in weights)
        super().load_weights(weights)

    def reset_prefix_cache(self):
        super().reset_prefix_cache()
        now = next(value for name, value in self.weights.items() if "q_proj" in name)
        self.moved.append((now - self.base.float()).abs().max().item())


def start(self):
    made.append(Noted(self.model.name_or_path, self.max_model_length, self.max_completion_length))
    self.llm, self._llm_weights_sleeping = made[-1], False


VLLMGeneration._init_vllm = start
GRPO.check_processes = lambda self: None  # the stand-in of each process answers alone
transformers.training_args.is_torch_bf16_gpu_available = lambda: True
status = run_command([sys.argv[2]])
print("moved", made[-1].moved, flush=True)
leave(status)
