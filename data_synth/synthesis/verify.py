"""Checks of a trace. Each is a pure function of (draft, pair, view) that returns the reason why the trace fails, or None.

verdict        it equals the human label
one_verdict    there is exactly one, a tier of the rubric, and the codec parses it in both answer orders
grounding      every found value occurs in the cited part of the item: title, attributes, description, caption of the photo
rules          every rule exists, belongs to the demand's dimension and has the stated tier
aggregate      the verdict follows from the demands' tiers by the rubric
coverage       the demands contain the query's content words, and cite only words of the query
hint_leak      no mention of raters, labels or hints
prompt_copy    no long run of words from the instructions
length         there is a rationale, within the maximum number of tokens
language       the demands are written in a script of the query
"""

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from lore.codec.grounding import citable, leaks, why_ungrounded
from lore.codec.judgement import FormatFailure, Judgement, parse, render_answer
from lore.codec.lexical_match import HAN, NEGATIONS, OWNER, PIECE, content_words, count_marks, missing_words, pieces
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.data_synth.synthesis.trace import Check, Draft
from lore.rubric.rubric import Rubric
from lore.support.text import compatible, normalize

COPIED_WORDS = 10


@dataclass(frozen=True)
class View:
    """Further inputs of the checks. count: number of tokens of a text; copied: runs of words of the instructions; photos: whether
    the teacher sees photos.
    """

    rubric: Rubric
    language: str
    coverage: float
    max_tokens: int
    count: Callable[[str], int]
    copied: frozenset[tuple[str, ...]]
    photos: bool = True


def verdict(draft: Draft, pair: Pair, view: View) -> str | None:
    if draft.tier != pair.label:
        return f"says {draft.tier}, the human label is {pair.label}"
    return None


def one_verdict(draft: Draft, pair: Pair, view: View) -> str | None:
    if len(draft.verdicts) != 1:
        return f"{len(draft.verdicts)} verdicts: {', '.join(draft.verdicts[:5])}"
    if draft.tier not in view.rubric.tier_ids:
        return f"{draft.tier!r} is not a tier of rubric {view.rubric.name}"
    for order in ("reason_first", "answer_first"):
        fmt = PromptFormat(order=order)
        judgement = parse(render_answer(Judgement(draft.tier, rationale=draft.rationale), view.rubric, fmt), view.rubric, fmt)
        if isinstance(judgement, FormatFailure) or judgement.tier != draft.tier:
            return f"the answer cannot be read back ({order})"
    return None


def grounding(draft: Draft, pair: Pair, view: View) -> str | None:
    places, has_photo = citable(pair, draft.caption), pair.image is not None and view.photos
    for wish, evidence in zip(draft.wishes, draft.evidence, strict=False):
        if why := why_ungrounded(wish.wanted, evidence.found, evidence.source, places, has_photo=has_photo):
            return f"{wish.dimension}: {why}"
    return None


def rules(draft: Draft, pair: Pair, view: View) -> str | None:
    known = {rule.id: rule for rule in view.rubric.rules}
    best, dimensions = view.rubric.tier_ids[-1], {rule.dimension for rule in view.rubric.rules}
    praised = {rule.dimension for rule in view.rubric.rules if rule.tier == best}
    for wish, ruling in zip(draft.wishes, draft.rulings, strict=False):
        if ruling.tier not in view.rubric.tier_ids:
            return f"{wish.dimension}: {ruling.tier!r} is not a tier"
        if not ruling.rule:
            # Some rubrics have only rules for mismatches of a dimension; a fulfilled demand then has no rule to name.
            if wish.dimension in dimensions and (ruling.tier != best or wish.dimension in praised):
                return f"{wish.dimension}: no rule, and the rubric has some for it"
            continue
        rule = known.get(ruling.rule)
        if rule is None:
            return f"{wish.dimension}: {ruling.rule!r} is not a rule"
        if rule.dimension != wish.dimension:
            return f"{wish.dimension}: rule {rule.id} is about {rule.dimension}"
        if rule.tier != ruling.tier:
            return f"{wish.dimension}: rule {rule.id} gives {rule.tier}, not {ruling.tier}"
    return None


def aggregate(draft: Draft, pair: Pair, view: View) -> str | None:
    tiers = [ruling.tier for ruling in draft.rulings]
    if not tiers or any(tier not in view.rubric.tier_ids for tier in tiers):
        return "no tiers to make a verdict of"
    if len(tiers) < len(draft.wishes) and tiers[-1] != view.rubric.tier_ids[0]:
        return f"only {len(tiers)} of {len(draft.wishes)} demands are judged"
    wanted = view.rubric.verdict_over(tiers)
    if wanted is not None and draft.tier != wanted:
        return f"the {view.rubric.aggregate} of {', '.join(tiers)} is {wanted}, not {draft.tier}"
    return None


def coverage(draft: Draft, pair: Pair, view: View) -> str | None:
    for wish in draft.wishes:
        if foreign := missing_words(wish.words, pair.query):
            return f"{wish.dimension}: {', '.join(foreign)} does not stand in the query"
    content = content_words(OWNER.sub("", pair.query), view.language)
    held = " \n ".join(f"{wish.words} \n {wish.wanted}" for wish in draft.wishes)
    if not NEGATIONS.isdisjoint(pieces(pair.query)) and NEGATIONS.isdisjoint(pieces(held)):
        return "the query rules something out, and no demand does"
    missing = [word for word in content if missing_words(word, held)]
    if content and len(missing) > (1 - view.coverage) * len(content) + 1e-9:
        return f"no demand holds {', '.join(missing[:5])}"
    return None


def hint_leak(draft: Draft, pair: Pair, view: View) -> str | None:
    found = leaks(f"{draft.rationale}\n{draft.caption or ''}", pair)
    return f"speaks of {found[0]!r}" if found else None


def prompt_copy(draft: Draft, pair: Pair, view: View) -> str | None:
    for run in runs_of_words(f"{draft.rationale}\n{draft.caption or ''}"):
        if run in view.copied:
            return f"copies the instructions: {' '.join(run)!r}"
    return None


def length(draft: Draft, pair: Pair, view: View) -> str | None:
    if not draft.rationale.strip():
        return "no rationale"
    tokens = view.count(draft.rationale)
    return f"{tokens} tokens, at most {view.max_tokens} are allowed" if tokens > view.max_tokens else None


def language(draft: Draft, pair: Pair, view: View) -> str | None:
    asked = scripts(pair.query)
    written = scripts(" ".join(wish.wanted for wish in draft.wishes))
    if not asked or not written:
        return None
    most, count = written.most_common(1)[0]
    own = {"en": "LATIN", "zh": "CJK"}[view.language]  # AJ1 may be resolved in the language of the recipe
    if most != own and asked[most] < 0.2 * asked.total() and count > 0.5 * written.total():
        return f"written in {most.title()} script, the query is in {asked.most_common(1)[0][0].title()}"
    return None


ALL = {
    check.__name__: check
    for check in (verdict, one_verdict, grounding, rules, aggregate, coverage, hint_leak, prompt_copy, length, language)
}


class Verifier:
    """Runs the checks of a recipe. instructions: texts that all prompts share; tokenizer: counts the tokens of a rationale."""

    def __init__(
        self,
        names: list[str],
        rubric: Rubric,
        *,
        language: str = "en",
        coverage: float = 0.8,
        max_tokens: int = 160,
        tokenizer: Any = None,
        instructions: tuple[str, ...] = (),
        photos: bool = True,
    ):
        copied = frozenset(run for text in instructions for run in runs_of_words(text))
        count = (lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])) if tokenizer is not None else count_marks
        self.view = View(rubric, language, coverage, max_tokens, count, copied, photos)
        self.checks = {name: ALL[name] for name in names}

    def check(self, draft: Draft, pair: Pair) -> list[Check]:
        return [Check(name, check(draft, pair, self.view) or "") for name, check in self.checks.items()]

    def length_of(self, rationale: str) -> int:
        return self.view.count(rationale)


def runs_of_words(text: str) -> list[tuple[str, ...]]:
    """Every run of COPIED_WORDS words; each Han character counts as a word."""
    words = [part for piece in PIECE.findall(normalize(text)) for part in (list(piece) if HAN.match(piece) else [piece])]
    return [tuple(words[at : at + COPIED_WORDS]) for at in range(len(words) - COPIED_WORDS + 1)]


def scripts(text: str) -> Counter[str]:
    """Number of letters by script, named as their Unicode names begin: LATIN, CJK, CYRILLIC."""
    return Counter(_script(letter) for letter in compatible(text) if letter.isalpha())


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]
