"""The dry pass: what a stage checks before its work, so that no cause of this kind is first found at its end.

This is the only table of its checks: `--dry-run` lists them, and `lore.run.dry_pass` runs them. Nothing here imports torch.
"""

CHECKS = {
    "saving": "config, generation_config and processor can be saved and read again",
    "weights format": "the weights can be written as safetensors",
    "gathering": "the launch configuration gathers sharded weights for the final save",
    "engine": "the engine is installed and takes the model, its adapter and its chat template",
    "verdict tokens": "one token tells the rubric's tiers apart",
    "conversation": "training rows, scoring and the chat template's own conversation have the same token ids",
    "positions": "the longest prompt with its answer fits the model's positions",
    "neighbors": "the loss of a row does not depend on the rows beside it in a batch",
    "vocabulary": "every token id in use has a row in the model's embeddings",
    "photos": "the vision tower, or the table of photo vectors, can be read",
    "catalogue": "every model scores the items of the catalogue, and codes name them all",
    "disk space": "the file system has room for what will be written",
}
"""Checks by name, each with what it verifies."""

_TRAINING = ("saving", "weights format", "gathering", "verdict tokens", "conversation", "positions", "neighbors", "vocabulary")
_TRAINING += ("disk space",)
_ASKING = ("engine", "verdict tokens", "conversation", "positions", "vocabulary")

STAGE_CHECKS: dict[str, tuple[str, ...]] = {
    "pretrain": ("saving", "weights format", "positions", "vocabulary", "disk space"),
    "sft": _TRAINING,
    "grpo": _TRAINING,
    "ppo": _TRAINING,
    "dpo": _TRAINING,
    "kto": _TRAINING,
    "pool": _ASKING,
    "evaluate": _ASKING,
    "synthesize": _ASKING,
    "label": _ASKING,
    "distill": ("positions", "vocabulary", "neighbors", "saving", "disk space"),
    "semantic_ids": ("positions", "photos", "disk space"),
    "recommender": ("disk space",),
    "recommend_eval": ("catalogue",),
    "export": ("saving", "weights format", "verdict tokens", "vocabulary", "disk space"),
}
"""Names of a stage's checks, in the order in which they run. Other stages load no model. `export` is the command of that name."""


def listed(stage: str) -> list[str]:
    """One line per check of the stage's dry pass."""
    return [f"{name}: {CHECKS[name]}" for name in STAGE_CHECKS.get(stage, ())]
