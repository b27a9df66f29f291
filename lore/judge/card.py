"""The card next to a judge's weights: how the judge was trained. A run that would prompt it differently is an error."""

import json
from pathlib import Path
from typing import Any

from lore.codec.chat_template import conversation_fingerprint
from lore.engines.config import ModelSection
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.fingerprint import model_fingerprint, template_fingerprint
from lore.support.untrusted_json import read_object

CARD = "lore.json"
LOST = "it is unknown how the judge was trained, and it could be prompted differently"
ADVICE = "Copy the judge's folder again, or train the judge again. Delete the file if the model is no judge of LORE."


def judge_card(recipe: Any, renderer: str, rubric: str, processor: Any) -> dict[str, Any]:
    """The card of a judge in training: renderer hash, rubric (hash and name), base model (name and, for a local folder,
    fingerprint), chat template, the conversation that it writes, and prompt section. processor: tokenizer or processor.
    """
    return {
        "renderer_hash": renderer,
        "rubric_hash": rubric,
        "rubric": recipe.data.rubric,
        "base": recipe.model.name,
        "base_fingerprint": _base_fingerprint(recipe.model.name),
        "template": template_fingerprint(processor),
        "conversation": conversation_fingerprint(processor),
        "prompt": recipe.prompt.model_dump(),
    }


def judge_id(weights: str, rubric: str, renderer: str) -> str:
    """Identifies a judge and its prompt format in every Verdict. weights: fingerprint of weights and adapter, or the model's name
    on a server; rubric, renderer: their hashes."""
    return f"{weights}:{rubric}:{renderer}"


def split_judge_id(name: str) -> tuple[str, str, str]:
    """(weights, rubric, renderer) of a judge_id; rubric and renderer are "" in an id that was not made by `judge_id`."""
    weights, *hashes = name.rsplit(":", 2)
    return (weights, *hashes) if len(hashes) == 2 else (name, "", "")


def _base_fingerprint(name: str) -> str | None:
    return model_fingerprint(name) if Path(name).is_dir() else None


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Stores the card next to the weights."""
    write_atomic(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def read_card(folder: str | Path | None) -> dict[str, Any] | None:
    """The card in a judge's folder; None for a model that is not a judge, such as a base model or a hub id. Raises LoreError for a
    damaged one."""
    path = Path(folder or "") / CARD
    if not folder or not path.is_file():
        return None
    card = read_object(path, LOST, ADVICE, same_on_every_rank=True)
    if absent := [key for key in ("renderer_hash", "rubric", "prompt", "base") if key not in card]:
        raise LoreError(f"{path} is damaged (no {absent[0]}), so {LOST}.\n{ADVICE}", same_on_every_rank=True)
    return card


def check_card(model: ModelSection, renderer: str, what: str) -> None:
    """Raises LoreError when the judge was trained with a renderer hash other than `renderer`, or when the base model's weights
    have changed since its adapter was trained.
    """
    folder = model.adapter or model.name
    card = read_card(folder)
    if card is None:
        return
    if card["renderer_hash"] != renderer:
        raise LoreError(
            f"{what}: {folder} was trained with renderer {card['renderer_hash']} and would now be asked with "
            f"{renderer}.\nIts answers would be unreliable. It was trained with rubric {card['rubric']} and prompt "
            f"{card['prompt']}: use these, or train a judge for the new ones."
        )
    trained, base = card.get("base_fingerprint"), _base_fingerprint(model.name)
    if model.adapter and trained and base and trained != base:
        raise LoreError(
            f"{what}: the adapter {folder} was trained on base weights {trained} ({card['base']}), and {model.name} now "
            f"holds {base}.\nThe quality of an adapter on other weights is unknown: restore the old base, or train the "
            "adapter again."
        )


def check_template(model: ModelSection, processor: Any, what: str) -> None:
    """Raises LoreError when the processor's chat template is not the one that the judge was trained with."""
    folder = model.adapter or model.name
    card = read_card(folder) or {}
    # The same template writes another conversation if it is asked in another way, for example with another date.
    for key, fingerprint in (("template", template_fingerprint), ("conversation", conversation_fingerprint)):
        trained = card.get(key)
        if trained and trained != (now := fingerprint(processor)):
            raise LoreError(
                f"{what}: {folder} was trained with chat template {trained}, and {model.name} now has {now} ({key}).\n"
                "Its prompts would differ from those in training: restore the template, or train the judge again."
            )
