"""Stage recommender: histories become a sequence model, which ranks the catalogue by what a shopper takes next.

    accelerate launch recipes/recommend/pretrain.yaml
    accelerate launch recipes/recommend/finetune.yaml

Pre-training hides places of the histories by a mixture of masks; fine-tuning (model.name) goes on with the last place alone. One
row is the training part of a history, or its beginning up to one event. The mask of a row is drawn from the seed and the row's
visit, so it depends neither on the number of processes nor on an interruption.

Left out: negative sampling, since the softmax goes over the whole catalogue, and a choice of the best epoch on held-out events,
since the learning rate falls to 0 and the last epoch is as good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Trainer, set_seed

from lore.recommend.codes import Codes, read_codes
from lore.recommend.histories import Histories
from lore.recommend.masks import draw_mask
from lore.recommend.model import IGNORE, ITEMS, MASK, PAD, SequenceModel, load_model, padded, save_model
from lore.recommend.recommender_recipe import MasksSection, NetworkSection, RecommenderRecipe
from lore.run.dry_pass import dry_pass
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say
from lore.train.common.batch_order import training_order
from lore.train.common.checkpoint import check_room, saved_bytes
from lore.train.common.frozen_weights import freeze_weights
from lore.train.common.trainer import Recorder, own_network_arguments, refuse_sharding, set_steps, total_steps, train


def run(recipe: RecommenderRecipe, folder: RunFolder) -> None:
    """Trains the model in <run>/model."""
    args = own_network_arguments(recipe.train, folder, 1, recipe.seed)
    histories = recipe.data.histories()
    rows = training_rows(histories, recipe.masks.rows)
    steps = total_steps(recipe.train, len(rows))
    set_steps(args, recipe.train, steps)
    set_seed(recipe.seed)
    model, codes, counts = start(recipe, histories)
    check(recipe, folder, model, steps)
    freeze_weights(model, recipe.train.freeze)
    lengths = np.minimum(rows[:, 1], model.network.history)
    order = training_order(lengths, recipe.train.batch_size, steps, recipe.seed)
    title = model.network.title(bool(codes))
    say(f"{title}: {len(rows):,} {recipe.masks.rows}, {len(counts):,} items, {steps:,} steps of {recipe.train.batch_size}")
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=Rows(histories, rows[order], model.network, recipe.masks, recipe.seed),
        data_collator=collate,
    )
    refuse_sharding(trainer, "a sequence model")
    recorder = Recorder(folder, "recommender", keep=recipe.train.keep_checkpoints)
    seconds = train(trainer, recorder, folder, recipe)
    if is_main_process():
        trained = trainer.accelerator.unwrap_model(trainer.model)
        save_model(trained, folder / "model", histories.item_ids, codes, counts)
        folder.note(data_fingerprint=histories.fingerprint, codes_fingerprint=[one.fingerprint for one in codes])
        loss = folder.last_record("loss")["loss"]
        folder.finish({"steps": steps, "loss": loss, "train_seconds": round(seconds, 2), "model": str(folder / "model")})


def training_rows(histories: Histories, kind: Literal["histories", "events"]) -> np.ndarray:
    """Rows of an epoch [N, 2]: a user, and how many of her training events are read and predicted: at least two."""
    counts = histories.train_ends - histories.starts[:-1]
    users = np.flatnonzero(counts >= 2)
    if not len(users):
        raise LoreError(
            "No history has two training events, so there is nothing to predict.\nCheck data.events and data.split, and data.by: "
            "sessions may be too short where users are not.",
            same_on_every_rank=True,
        )
    if kind == "histories":
        return np.stack([users, counts[users]], axis=1)
    first = np.cumsum(counts[users] - 1) - (counts[users] - 1)
    repeated = np.repeat(users, counts[users] - 1)
    return np.stack([repeated, np.arange(len(repeated)) - np.repeat(first, counts[users] - 1) + 2], axis=1)


def start(recipe: RecommenderRecipe, histories: Histories) -> tuple[SequenceModel, list[Codes], np.ndarray]:
    """(model, codes, training events per item) at the beginning. Raises LoreError for an earlier run of another catalogue."""
    if recipe.model.name is None:
        codes = [read_codes(path, histories.item_ids) for path in recipe.codes.paths]
        if recipe.codes.shuffled is not None:
            codes = [one.shuffled(recipe.codes.shuffled) for one in codes]
        counts = histories.training_counts()
        return SequenceModel(recipe.network, codes, counts), codes, counts
    model, item_ids, codes, counts = load_model(recipe.model.name)
    if item_ids != histories.item_ids:
        raise LoreError(
            f"{recipe.model.name} was trained on {len(item_ids):,} items and data has {len(histories.item_ids):,}, or the same in "
            "another order, so its vectors are those of other items.\nName the same data.items and data.events as the earlier run.",
            same_on_every_rank=True,
        )
    return model.train(), codes, counts


def check(recipe: RecommenderRecipe, folder: RunFolder, model: SequenceModel, steps: int) -> None:
    """The dry pass."""

    def disk_space() -> None:
        weights, optimizer = saved_bytes(model, None)
        copies = recipe.train.keep_checkpoints + 1 if recipe.train.save_every else 0
        what = f"{copies} checkpoints and the final weights"
        check_room(
            folder.path, copies * (weights + optimizer) + weights, what, ["lower train.keep_checkpoints"], replaced=("checkpoints",)
        )

    dry_pass(recipe.stage, {"disk space": disk_space})


@dataclass
class Rows(Dataset):
    """Tokens and labels of the visited rows. visits [N, 2]: as from training_rows, in the order of the visits."""

    histories: Histories
    visits: np.ndarray
    network: NetworkSection
    masks: MasksSection
    seed: int

    def __len__(self) -> int:
        return len(self.visits)

    def __getitem__(self, visit: int) -> tuple[np.ndarray, np.ndarray]:
        user, count = self.visits[visit]
        items = self.histories.training(user)[:count].astype(np.int64)
        if self.network.kind == "sasrec":
            items = items[-self.network.history - 1 :]
            return items[:-1] + ITEMS, items[1:]
        rng = np.random.default_rng([self.seed, visit])
        weights = self.masks.weights()
        kind = rng.choice(list(weights), p=np.fromiter(weights.values(), float) / sum(weights.values()))
        if kind == "last" and rng.random() < self.masks.cut:
            items = items[: rng.integers(2, len(items) + 1)]
        items = items[-self.network.history :]
        hidden = draw_mask(kind, len(items), self.masks.share, rng)
        return np.where(hidden, MASK, items + ITEMS), np.where(hidden, items, IGNORE)


def collate(rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    tokens, labels = zip(*rows, strict=True)
    return {"tokens": padded(tokens, PAD), "labels": padded(labels, IGNORE)}
