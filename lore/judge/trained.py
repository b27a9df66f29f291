"""Opens a trained judge by its folder: the weights, and how they have to be asked, from the card beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat
from lore.codec.section import PromptSection
from lore.engines.config import ModelSection
from lore.judge.card import CARD, check_card, read_card
from lore.rubric.rubric import Rubric, load_rubric
from lore.support.errors import LoreError
from lore.support.fingerprint import model_fingerprint


@dataclass(frozen=True)
class TrainedJudge:
    """A judge's weights with its rubric and prompt format. weights, renderer: see `lore.judge.card.judge_id`."""

    folder: Path
    model: ModelSection
    rubric: Rubric
    fmt: PromptFormat
    weights: str
    renderer: str


def trained_judge(path: str | Path, *, rubric: str | None = None, base: str | None = None) -> TrainedJudge:
    """The judge in a run folder (runs/grpo), in its model folder (runs/grpo/model) or in the folder of `lore export`.

    rubric: name or path of its rubric, if it has moved since the training; its texts must be the same. base: folder or hub id of
    the base model of an adapter, if that has moved. Raises LoreError for a folder without a card, and if rubric, renderer or base
    are not those of the training.
    """
    folder = Path(path)
    if not (folder / CARD).is_file() and (folder / "model" / CARD).is_file():
        folder = folder / "model"
    if not folder.is_dir():
        raise LoreError(f"{path} is not a folder, so there is no judge. Name the run folder of its training, such as runs/grpo.")
    card = read_card(folder)
    if card is None:
        done = (folder / "recipe.yaml").is_file() and not (folder / "model").is_dir()
        hint = (
            "The run has no model: it may not be finished; run its recipe again."
            if done
            else "Name the run folder of sft, grpo, ppo, dpo or kto, its model folder, or a folder that `lore export` wrote."
        )
        raise LoreError(f"{path} has no {CARD}, so it is unknown how its model has to be asked.\n{hint}")
    if card.get("kind") == "student":
        raise LoreError(f"{path} is a student, which reads texts and has no prompt. Name the run folder of a trained judge here.")
    adapter = (folder / "adapter_config.json").is_file()
    model = ModelSection(name=base or _base(card, folder), adapter=str(folder)) if adapter else ModelSection(name=str(folder))
    if base and not adapter:
        raise LoreError(f"{folder} holds whole weights and no adapter, so it has no base model. Leave {base} out.")
    found = load_rubric(rubric or card["rubric"])
    fmt = PromptFormat(**PromptSection(**card["prompt"]).model_dump())
    renderer = renderer_hash(found, fmt)
    check_card(model, renderer, str(path))
    return TrainedJudge(folder, model, found, fmt, model_fingerprint(model.name, model.adapter), renderer)


def _base(card: dict[str, Any], folder: Path) -> str:
    """The base model of an adapter. A folder that the card names relative to where the training ran is looked up from here, then
    from the folders above the adapter. Raises LoreError if it is in none: a name without weights would be another judge's id."""
    name = card["base"]
    if not card.get("base_fingerprint") or Path(name).is_dir():  # without a fingerprint it was a hub id
        return name
    for above in folder.resolve().parents:
        if (above / name).is_dir():
            return str(above / name)
    raise LoreError(
        f"{folder} is an adapter of the base model {name}, which is neither here nor in a folder above the adapter.\nName the base "
        "model's folder (--base, or base beside the judge's path in a recipe)."
    )
