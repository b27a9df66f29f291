"""Wraps the model of a trainer as an engine, to sample answers and measure their token entropy during training."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lore.engines.chat import prompt_text, prompt_tokens
from lore.engines.engine import Completion, Messages, Sampling
from lore.engines.row_independence import base_of
from lore.engines.transformers import TransformersEngine
from lore.train.common.trl_internals import unwrapped_for_generation

ENTROPY_POSITIONS = 256  # positions per float32 softmax, to limit memory


@contextmanager
def policy(trainer: Any) -> Iterator[Any]:
    """The trainer's model with gathered weights, in evaluation mode. Restores random state and training modes afterwards."""
    accelerator = trainer.accelerator
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        model, is_fsdp = stack.enter_context(unwrapped_for_generation(trainer))
        if is_fsdp:
            stack.enter_context(_in_step(model))
        stack.enter_context(accelerator.autocast())
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            yield model
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def _in_step(model: Any) -> Iterator[None]:
    """Keeps generation in sync under FSDP: a process whose answers are complete keeps calling the model until all are done."""
    inner = base_of(model)
    before = getattr(inner, "_is_fsdp_managed_module", False)
    inner._is_fsdp_managed_module = True
    try:
        yield
    finally:
        inner._is_fsdp_managed_module = before


class PolicyEngine(TransformersEngine):
    """The transformers engine for a model in training.

    It keeps the sampled token ids and does not use inference mode: tensors that FSDP gathers or a model caches in inference mode
    cannot be used for training afterwards.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._ids: dict[int, list[int]] = {}

    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        """See Engine.generate."""
        return TransformersEngine.generate.__wrapped__(self, prompts, sampling)

    def _completion(self, ids: list[int], prompt_tokens: int = 0) -> Completion:
        completion = super()._completion(ids, prompt_tokens)
        self._ids[id(completion)] = ids[: completion.tokens]
        return completion

    def longest(self, prompts: list[Messages]) -> int:
        """Length of the longest prompt in tokens, including photos."""
        return max(prompt_tokens(self.processor, messages) for messages in prompts)

    def entropy(self, answers: list[tuple[Messages, Completion]], temperature: float) -> tuple[float, int]:
        """(sum of the entropies in nats, number of tokens) over tokens sampled by this engine, one forward pass per answer."""
        total, count = 0.0, 0
        for messages, completion in answers:
            inputs = self._inputs([prompt_text(self.processor, messages)])
            ids = torch.tensor([self._ids[id(completion)]], device=inputs["input_ids"].device)
            # A sampled image placeholder would require another photo, so it is replaced by the padding token.
            ids[ids == getattr(self.model.config, "image_token_id", -1)] = self.tokenizer.pad_token_id
            shape = inputs["input_ids"].shape
            grown = {key: value for key, value in inputs.items() if value.shape == shape}
            more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            for key, value in grown.items():  # other per-token inputs are zero for answer tokens
                inputs[key] = torch.cat([value, more.get(key, torch.zeros_like(ids)).to(value.dtype)], dim=1)
            logits = self.model(**inputs, use_cache=False, logits_to_keep=ids.shape[1] + 1).logits[0, :-1]
            for part in logits.split(ENTROPY_POSITIONS):
                total += torch.special.entr(torch.softmax(part.float() / temperature, dim=-1)).sum().item()
            count += ids.shape[1]
        return total, count
