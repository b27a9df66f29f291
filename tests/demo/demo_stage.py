"""Two stages for tests: one writes a line, the other trains a tiny model in one or more processes."""

import os
from typing import Any, Literal

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, StrictModel
from lore.data.section import JudgedDataSection
from lore.engines.config import ModelSection
from lore.support.errors import LoreError


class TrainSection(StrictModel):
    lr: float = Field(1e-4, gt=0)
    """Learning rate after the warm-up."""
    steps: int = Field(10, ge=1)
    """Optimizer steps."""
    batch: int | None = None
    """Pairs per step."""

    def conflicts(self):
        if self.lr > 1 and self.steps > 100:
            yield Conflict(("lr", "steps"), f"{self.lr:g} for {self.steps} steps", "a small rate or few steps")


class DemoRecipe(BaseRecipe):
    irrelevant_keys = frozenset({"note"})

    stage: Literal["demo"]
    model: ModelSection | None = None
    data: JudgedDataSection | None = None
    train: TrainSection = TrainSection()
    extra: dict[str, TrainSection] = {}
    tags: list[str] = []
    note: str | None = None
    fail: bool = False

    def derived(self) -> dict[str, Any]:
        return {"final_step": self.train.steps}


def run(recipe, folder):
    if recipe.fail:
        raise LoreError("the demo was told to fail")
    folder.record({"step": 1, "loss": 0.5})
    folder.finish({"loss": 0.5, "rank": os.environ.get("RANK"), "launcher_seen": "ACCELERATE_MIXED_PRECISION" in os.environ})


class TrainDemoRecipe(BaseRecipe):
    stage: Literal["train_demo"]


def train(recipe, folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from lore.run.devices import check_world, device_arguments

    arguments = TrainingArguments(
        str(folder / "out"),
        per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", 1)),
        max_steps=3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        **device_arguments(),
    )
    check_world(arguments.world_size)
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    rows = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(12)]
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=rows)
    trainer.train()
    kind = trainer.accelerator.distributed_type.value
    folder.finish(
        {
            "world": arguments.world_size,
            "kind": kind,
            "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        }
    )
