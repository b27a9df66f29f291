"""Measures the mismatch between the log-probabilities that answers are sampled with and those that the loss computes.

A sampling filter, another temperature or a different forward pass causes a mismatch. With vLLM, TRL measures it.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lore.train.common.trl_internals import IMAGE_COUNTS, PHOTO_FIELDS


@torch.no_grad()
def sampler_gap(trainer: Any, rows: list[int]) -> torch.Tensor:
    """Samples an answer to each row. Returns the mean absolute difference, in nats per token, between its log-probabilities in
    sampling and in the loss. trainer: a GRPO. Restores the random state."""
    ids, images, fields = trainer.tokenize([trainer.prompts.messages(row) for row in rows])
    cuda = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    with torch.random.fork_rng(devices=cuda), scores_of(model) as made:
        completions, _ = trainer.generate(ids, images, fields, 1)
        asked, answered = made[0]
        tokens = answered.sequences[:, asked["input_ids"].shape[1] :]
        mask = torch.zeros_like(tokens)
        for row, completion in enumerate(completions):
            mask[row, : len(completion)] = 1
        shown = {name: asked[name] for name in PHOTO_FIELDS if name in asked}
        for name in shown:
            if name.endswith("token_type_ids"):
                shown[name] = torch.cat([shown[name], torch.zeros_like(tokens)], dim=1)
        if images is not None:
            shown[IMAGE_COUNTS] = [len(one) for one in images]
        attention = torch.cat([asked["attention_mask"], mask], dim=1)
        theirs = torch.stack([score.float().log_softmax(dim=-1) for score in answered.scores], dim=1)
        theirs = theirs.gather(2, tokens.unsqueeze(2)).squeeze(2)
        ours = trainer.token_logps(trainer.model, answered.sequences, attention, tokens.shape[1], **shown)
    return (theirs - ours).abs()[mask.bool()].mean()


@contextmanager
def scores_of(model: Any) -> Iterator[list[tuple[dict[str, Any], Any]]]:
    """Records the arguments of `model.generate` inside the block, and its outputs with the scores of each token."""
    made: list[tuple[dict[str, Any], Any]] = []
    generate = model.generate

    def scored(*, generation_config: Any, **asked: Any) -> torch.Tensor:
        config = copy.deepcopy(generation_config)
        config.return_dict_in_generate = config.output_scores = True
        made.append((asked, generate(generation_config=config, **asked)))
        return made[-1][1].sequences

    model.generate = scored
    try:
        yield made
    finally:
        del model.generate
