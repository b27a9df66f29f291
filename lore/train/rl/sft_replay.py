"""SFT replay: pairs for an SFT loss in addition to the policy loss, rendered as in stage sft, in an order fixed before step 0."""

from functools import partial

import numpy as np
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lore.data.pair_source import PairSource
from lore.data.parquet import pair_files
from lore.data.rejected_rows import RejectedWriter
from lore.data.splits import read_split
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, rank, world_size
from lore.support.progress import track
from lore.train.common.arrow_rows import rendered_rows, write_rows
from lore.train.common.batch_order import training_order
from lore.train.common.trainer import micro_batch
from lore.train.judge.collator import PhotoCollator
from lore.train.judge.rows import TEXT_SCHEMA, VISION_SCHEMA, rejection_of, sft_row, takes_photos
from lore.train.judge.session import Start
from lore.train.rl.config import RolloutRecipe


def write_replay(recipe: RolloutRecipe, data: PairSource, start: Start) -> None:
    """Renders as many pairs with reasoning as the run needs into <run>/data/replay.arrow, without pairs that cannot be rendered.
    Runs once, in the main process."""
    folder, path = data.folder, data.folder / "data" / "replay.arrow"
    if path.is_file() or not is_main_process():
        return
    rubric, fmt, processor = start.rubric, start.fmt, start.processor
    source = recipe.replay.path or data.path
    try:
        pair_files(source)
    except LoreError as error:
        raise LoreError(
            f"replay.path {source} holds no pairs, so nothing can be replayed.\n"
            "Give the pairs of a synthesize run (<run>/pairs), or remove the replay section."
        ) from error
    read = partial(read_split, source, recipe.replay.split, data.dealt, limit=recipe.replay.limit, image_roots=data.image_roots)
    reasoned = [
        number
        for number, pair in enumerate(track(read(columns=["label", "rationale"]), "choosing replay"))
        if pair.label is not None and (pair.rationale or recipe.prompt.order == "answer_only")
    ]
    # Sample from the whole file: pairs of one query, source or rule are often adjacent.
    count = min(len(reasoned), recipe.replay.rows * recipe.train.steps)
    chosen = set(np.random.default_rng([recipe.seed, 3]).choice(reasoned, count, replace=False).tolist())
    with RejectedWriter(path, folder / "rejected_replay.jsonl") as rejected:

        def rows():
            for number, pair in enumerate(track(read(), "rendering replay")):
                if number not in chosen:
                    continue
                try:
                    row = sft_row(pair, rubric, fmt, processor)
                except LoreError as error:
                    rejected.write(rejection_of(pair, error, str(source), number + 1))
                    continue
                if row["length"] > recipe.train.max_tokens:
                    raise LoreError(
                        f"replay, pair {pair.pair_id}: prompt and answer take {row['length']} tokens, train.max_tokens is "
                        f"{recipe.train.max_tokens}.\nA truncated row would lose its verdict: raise train.max_tokens."
                    )
                yield row

        nothing = (
            f"replay: of the pairs of {source} (split {recipe.replay.split}) {len(reasoned):,} have a label and reasoning, and "
            f"none of the {count:,} sampled ones can be rendered, so nothing can be replayed.\n"
            "Set replay.path to the pairs of a synthesize run, or remove the replay section."
        )
        schema = VISION_SCHEMA if takes_photos(processor, fmt) else TEXT_SCHEMA
        write_rows(rejected.before(rows()), schema, path, nothing=nothing)


def replay_rows_per_pass(recipe: RolloutRecipe) -> tuple[int, int]:
    """(rows, every): each process replays `rows` rows in every `every`-th forward pass. Raises LoreError when the rows of a step do
    not divide evenly."""
    _, passes = micro_batch(recipe.train)
    mine, left = divmod(recipe.replay.rows, world_size())
    if left or (mine % passes and passes % mine):
        raise LoreError(
            f"replay.rows is {recipe.replay.rows}, and a step has {passes} forward passes on {world_size()} processes, which "
            f"cannot share them evenly.\nUse a multiple of {passes * world_size()}, or a divisor of it that is a multiple of "
            f"{world_size()}.",
            same_on_every_rank=True,
        )
    return max(1, mine // passes), max(1, passes // mine)


class Replay:
    """Replay batches of this process, by the number of the forward pass since step 0.

    every: only every `every`-th pass has a batch. Above 1 when a step has more passes than this process has rows.
    """

    def __init__(self, recipe: RolloutRecipe, folder: RunFolder, start: Start):
        fmt, processor = start.fmt, start.processor
        self.rows = rendered_rows(folder / "data" / "replay.arrow")
        self.size, self.every = replay_rows_per_pass(recipe)
        self.lengths = self.rows["length"][:]
        self.order = training_order(self.lengths, recipe.replay.rows, recipe.train.steps, recipe.seed)
        if takes_photos(processor, fmt):
            several = world_size() > 1
            self.columns = ["prompt", "completion", "images"]
            self.collate = PhotoCollator(processor, always_photo=several, max_photo_pixels=fmt.max_photo_pixels)
        else:
            tokenizer = getattr(processor, "tokenizer", processor)
            self.columns, self.collate = ["input_ids", "labels"], DataCollatorForLanguageModeling(tokenizer.pad_token_id)
        self.rows = self.rows.select_columns(self.columns)

    def __call__(self, number: int) -> dict[str, torch.Tensor] | None:
        """The padded batch with labels for the forward pass `number`; None for a pass without replay."""
        turn, left = divmod(number, self.every)
        if left:
            return None
        first = (turn * world_size() + rank()) * self.size
        chosen = [self.rows[int(row)] for row in self.order[first : first + self.size]]
        return {key: value for key, value in self.collate(chosen).items() if isinstance(value, torch.Tensor)}
