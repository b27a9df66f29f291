"""The dry pass of the stages that train a judge: see lore.config.dry_pass for its checks.

A stage calls it when its rows and its model are loaded, before it creates the trainer.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lore.codec.verdict_tokens import verdict_tokens
from lore.data.pair import Pair
from lore.engines.conversation_check import check_conversation
from lore.engines.model_checks import (
    check_format,
    check_positions,
    check_saving,
    check_vocabulary,
    longest_prompt,
    photo_tokens,
    position_limit,
)
from lore.run.dry_pass import Check, dry_pass, together
from lore.run.run_folder import RunFolder
from lore.train.common.checkpoint import check_disk, check_gathering, saved_bytes
from lore.train.judge.rows import shown_messages
from lore.train.judge.session import Start, new_lora_parameters

ROWS_FIX = "lower prompt.max_prompt_tokens, leave out the longest pairs"
PROMPTS_FIX = "lower prompt.max_prompt_tokens"


def check_training(
    recipe: Any,
    folder: RunFolder,
    start: Start,
    model: Any,
    args: Any,
    *,
    steps: int,
    neighbors: Check,
    rows: Any = None,
    asked: Iterable[tuple[str, list[Pair], int]] = (),
) -> None:
    """Runs the dry pass of a training stage.

    neighbors: the stage's check of how it batches rows.
    rows: a data set with the column `length`, prompts and answers together, and columns of token ids if it has no photos.
    asked: (what, pairs, tokens of an answer) of prompts that the judge answers during training. model: as `trained_model` returns
    it. args: the trainer's arguments. Raises LoreError with all problems, in every process.
    """
    section, processor, in_full = recipe.model, start.processor, recipe.model.lora is None and recipe.model.adapter is None
    beside = folder / "dry_pass"
    written = start.fmt.order != "answer_only" or recipe.stage in ("grpo", "ppo")  # else a judge's tiers are only scored

    def rows_fit() -> None:
        if rows is not None:
            check_positions(model, max(rows["length"][:]), "the longest row, prompt and answer,", ROWS_FIX)

    def prompts_fit(what: str, pairs: list[Pair], answer: int) -> None:
        limit = position_limit(model)
        most = recipe.prompt.max_prompt_tokens + photo_tokens(pairs, start.fmt, processor) + answer
        if not pairs or limit is None or most <= limit:
            return
        # The budget is larger than the model, but the prompts may be shorter than the budget.
        shown = (shown_messages(pair, start.rubric, start.fmt, processor)[0] for pair in pairs)
        tokens = longest_prompt(shown, processor) + answer
        check_positions(model, tokens, f"{what}, with an answer of {answer:,} tokens,", PROMPTS_FIX)

    def disk_space() -> None:
        new = new_lora_parameters(model, recipe) if section.lora is not None else None
        saved = saved_bytes(model, new, whole=in_full, deepspeed=getattr(args, "deepspeed_plugin", None) is not None)
        watched = getattr(recipe, "watch", None)
        check_disk(recipe.train, folder, saved, steps, processor, best=watched is not None and watched.every > 0)

    dry_pass(
        recipe.stage,
        {
            "saving": lambda: check_saving(section, model, processor, beside),
            "weights format": lambda: check_format(section, model, beside),
            "gathering": lambda: check_gathering(args, in_full),
            "verdict tokens": lambda: verdict_tokens(processor, start.rubric),
            "conversation": lambda: check_conversation(processor, start.rubric, start.fmt, written=written),
            "positions": together([rows_fit, *(partial(prompts_fit, *one) for one in asked)]),
            "neighbors": neighbors,
            "vocabulary": lambda: check_vocabulary(section, model, processor, highest_id(rows)),
            "disk space": disk_space,
        },
    )


def highest_id(rows: Any) -> int | None:
    """The highest token id in a data set's columns of token ids; None if it has none."""
    found = []
    for name in [] if rows is None else rows.column_names:
        if name.endswith("_ids") and pa.types.is_list(rows.data.table.schema.field(name).type):
            found += [pc.max(chunk.flatten()).as_py() for chunk in rows.data.column(name).chunks]
    return max((id for id in found if id is not None), default=None)
