"""The mistakes in the report: which verdicts it shows, and what it shows of each. All texts and photos are bounded."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from lore.data.images import ImageError, load_image
from lore.data.pair import Pair
from lore.eval.measures.metrics import NO_VERDICT
from lore.eval.scorecard import Answers
from lore.eval.testset import EvalData, Labeled, read_chosen
from lore.judge.verdict import Verdict
from lore.rubric.rubric import Rubric
from lore.support.text import shortened

MAX_CHARS = {
    "query": 300,
    "title": 300,
    "rationale": 1200,
    "gold_rationale": 1200,
    "mismatch": 80,
    "text": 800,
    "pair_id": 80,
    "verdict": 80,
}
MAX_ATTRIBUTES, MAX_RULES, MAX_SLICES_SHOWN = 12, 6, 8
MAX_PHOTO_BYTES = 1_500_000
"""Limit for all photos of the page together, in base64; every judge gets an equal part."""
PHOTO_NOTES = {"failed": "photo unreadable, judged as text", "hidden": "photo not shown to this judge"}
KINDS = {
    "far": "most tiers off",
    "sure": "confident and wrong",
    "none": "no verdict",
    "high": "judged too high",
    "low": "judged too low",
}


@dataclass
class Mistake:
    """A pair to show, its label, and the reason to show it."""

    pair_id: str
    label: str
    why: str
    confidence: float | None
    kinds: tuple[str, ...] = ()
    """Keys of KINDS."""


def choose_mistakes(answers: Answers, test: Labeled, tier_ids: list[str], limit: int) -> list[Mistake]:
    """The most distant wrong verdicts, then the most confident other ones, then format failures: `limit` of each, no pair
    twice."""
    confidence = answers.confidence()
    sure = np.zeros(len(test)) if confidence is None else confidence
    distance = np.abs(answers.predicted - test.gold)
    wrong = np.flatnonzero((answers.predicted != test.gold) & (answers.predicted != NO_VERDICT))
    farthest = wrong[np.lexsort((-sure[wrong], -distance[wrong]))][:limit].tolist()
    chosen = {index: f"{distance[index]} tier{'s' * bool(distance[index] > 1)} off" for index in farthest}
    surest = [] if confidence is None else wrong[np.argsort(-sure[wrong], kind="stable")].tolist()
    chosen |= dict.fromkeys([index for index in surest if index not in chosen][:limit], "confident and wrong")
    far, most_sure = set(farthest), set(surest[:limit]) | (chosen.keys() - set(farthest))
    mistakes = []
    for index, why in chosen.items():
        kinds = ["far"] * (index in far) + ["sure"] * (index in most_sure)
        kinds.append("high" if answers.predicted[index] > test.gold[index] else "low")
        mistakes.append(
            Mistake(
                test.pair_ids[index],
                tier_ids[test.gold[index]],
                why,
                None if confidence is None else float(sure[index]),
                tuple(kinds),
            )
        )
    failed = np.flatnonzero(answers.predicted == NO_VERDICT)[:limit].tolist()
    return mistakes + [
        Mistake(test.pair_ids[index], tier_ids[test.gold[index]], "no verdict", None, ("none",)) for index in failed
    ]


def mistake_cards(
    names: list[str], verdicts: dict[str, dict[str, Verdict]], data: EvalData, limit: int, pixels: int
) -> dict[str, Any]:
    """The cards of the judges `names`, in their order, and the options of the page's filters."""
    rubric, test = data.rubric, data.test
    chosen = {
        name: choose_mistakes(Answers.of(verdicts[name], test, rubric), test, rubric.tier_ids, limit) for name in names
    }
    wanted = {mistake.pair_id for mistakes in chosen.values() for mistake in mistakes}
    pairs, photos, with_photo = {}, {}, set()
    for pair in read_chosen(data.path, test.split, wanted, image_roots=data.image_roots) if wanted else ():
        if pair.image is not None:
            with_photo.add(pair.pair_id)
            photos[pair.pair_id] = thumbnail(pair, pixels)
        pairs[pair.pair_id], pair.image = pair, None
    slices = sorted({name for pair_id in wanted for name in test.slices[test.position[pair_id]]})
    number = {name: index for index, name in enumerate(slices)}
    cards = []
    for name, mistakes in chosen.items():
        left = MAX_PHOTO_BYTES // max(len(names), 1)
        for mistake in mistakes:
            card = shown_mistake(mistake, pairs[mistake.pair_id], verdicts[name][mistake.pair_id], rubric)
            own = test.slices[test.position[mistake.pair_id]]
            card |= {"judge": name, "judge_number": names.index(name), "slice_numbers": [number[one] for one in own]}
            card["slices"] = [shortened(one, 60) for one in own[:MAX_SLICES_SHOWN]]
            card["photo"], card["has_photo"] = photos.get(mistake.pair_id), mistake.pair_id in with_photo
            if len(card["photo"] or "") > left:
                card["photo"], card["photo_note"] = None, "photo left out to keep this file small"
            left -= len(card["photo"] or "")
            cards.append(card)
    kinds = {kind: title for kind, title in KINDS.items() if any(kind in card["kinds"] for card in cards)}
    tiers = [(rubric.index(tier), name) for tier, name in tier_names(rubric).items()]
    return {
        "cards": cards,
        "labels": tiers,
        "verdicts": [*tiers, (NO_VERDICT, "none")],
        "judges": [(index, name) for index, name in enumerate(names) if chosen[name]],
        "kinds": list(kinds.items()),
        "slices": [(index, shortened(name, 60)) for name, index in number.items()],
    }


def shown_mistake(mistake: Mistake, pair: Pair, verdict: Verdict, rubric: Rubric) -> dict[str, Any]:
    """Texts and values of one mistake's card."""
    names = tier_names(rubric)
    texts = {
        "query": pair.query,
        "title": pair.title,
        "rationale": verdict.rationale,
        "gold_rationale": pair.rationale or "",
        "mismatch": verdict.mismatch or "",
        "text": (verdict.text or "") if verdict.tier is None else "",
        "pair_id": pair.pair_id,
        "verdict": f"none ({verdict.failure})" if verdict.tier is None else names[verdict.tier],
    }
    about = {"brand": pair.brand, "category": pair.category, "price": pair.price, "shop": pair.shop, **pair.attributes}
    given = [(key, str(value)) for key, value in about.items() if value not in (None, "")]
    return {name: shortened(text, MAX_CHARS[name]) for name, text in texts.items()} | {
        "why": mistake.why,
        "kinds": mistake.kinds,
        "confidence": None if mistake.confidence is None else f"{mistake.confidence:.0%}".replace("%", " %"),
        "label": names[mistake.label],
        "label_number": rubric.index(mistake.label),
        "verdict_number": NO_VERDICT if verdict.tier is None else rubric.index(verdict.tier),
        "attributes": [(shortened(key, 40), shortened(value, 120)) for key, value in given[:MAX_ATTRIBUTES]],
        "more_attributes": max(0, len(given) - MAX_ATTRIBUTES),
        "rules": rules_with_principles(verdict.rules, rubric),
        "gold_rules": rules_with_principles(pair.rules, rubric),
        "photo_note": PHOTO_NOTES.get(verdict.photo, ""),
    }


def tier_names(rubric: Rubric) -> dict[str, str]:
    """Tier id to its name on the page."""
    return {tier.id: tier.id if tier.name == tier.id else f"{tier.id} {tier.name}" for tier in rubric.tiers}


def rules_with_principles(ids: list[str], rubric: Rubric) -> list[tuple[str, str]]:
    """Rule ids with their principles; an empty text if the rubric does not have the rule."""
    principles = {rule.id: f"{rule.principle} ({rule.tier})" for rule in rubric.rules}
    return [(shortened(rule, 60), shortened(principles.get(rule, ""), 240)) for rule in ids[:MAX_RULES]]


def thumbnail(pair: Pair, pixels: int) -> str | None:
    """The photo as a small JPEG data URI; None if there is none or it cannot be read."""
    if pair.image is None:
        return None
    try:
        image = load_image(pair.image)
    except ImageError:
        return None
    image.thumbnail((pixels, pixels))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
