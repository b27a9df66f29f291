"""Tests each of LORE's three capabilities by itself: knowledge, multimodal matching and rule following.

Knowledge: with facts in the prompt, and with the query's words resolved. Photo: without the photo, and with another pair's photo.
Rules: with and without the rules, and with one rule changed (see changed_rules). All conditions use the same pairs, so the
differences are paired. A condition equal to the judge's own prompt reuses its verdicts. See docs/capabilities.md.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lore.data.images import image_bytes
from lore.data.pair import Pair
from lore.data_synth.synthesis.facts import RELATIONS, Fact, Facts, FactTable, open_facts, with_values
from lore.eval.measures.results import Condition
from lore.eval.probes.changed_rules import checked_edits, measure_changed_rules
from lore.eval.probes.conditions import Counting, Labels, format_with_rules, mean_text, verdict_changed
from lore.eval.sections import CapabilitySection
from lore.eval.testset import EvalData, read_chosen, whole_queries
from lore.judge.resumable import Asker, Verdicts
from lore.support.console import Console, Table, with_room

NOT_WORDS = (*RELATIONS, "count")  # kinds of facts whose value cannot replace the phrase in a text
SHOWN_FACTS, REPLACED_FACTS = 5, 50  # per pair
TEXT = ["pair_id", "query", "title", "attributes", "description", "brand"]
WIDTH = 200


def check_capability(data: EvalData, options: CapabilitySection) -> None:
    """Raises LoreError for an unusable fact table or rule change, before the judge is run."""
    if options.facts:
        open_facts(options.facts)
    if options.rule_edits:
        checked_edits(options.rule_edits, data)


def measure_capability(
    asker: Asker, data: EvalData, clean: Verdicts, options: CapabilitySection, *, samples: int, seed: int
) -> list[Condition]:
    """Results of one judge under every condition.

    clean: its verdicts on the unchanged test pairs. samples: bootstrap resamples of the queries. The chosen pairs of one
    capability are held in memory with their photos. Raises LoreError for an unusable fact table or rule change.
    """
    counting = Counting(samples, seed)
    roomy = asker
    if options.max_prompt_tokens is not None:
        roomy = replace(asker, fmt=replace(asker.fmt, max_prompt_tokens=options.max_prompt_tokens))
    found = _knowledge(roomy, data, clean, options, counting)
    found += _photo(asker, data, clean, options, counting)
    found += _rules(roomy, data, clean, options, counting)
    if options.rule_edits:
        # Both versions of the rules need the same prompt budget. Existing verdicts can be reused only if theirs is the same.
        found += measure_changed_rules(roomy, data, clean if roomy.fmt == asker.fmt else {}, options, counting)
    return found


def print_capability(conditions: dict[str, list[Condition]], console: Console) -> None:
    """Prints one table per judge."""
    for judge, rows in conditions.items():
        if not rows:
            continue
        table = Table(title=f"Capabilities of {judge}", title_justify="left")
        table.add_column("capability")
        table.add_column("condition", overflow="fold")
        for heading in ("pairs", "accuracy", "difference", "follows"):
            table.add_column(heading, justify="right", overflow="fold")
        table.add_column("note", overflow="fold")
        for row in rows:
            estimates = [str(value) if value is not None else "" for value in (row.accuracy, row.difference, row.follows)]
            table.add_row(row.capability, row.condition, str(row.pairs), *estimates, row.note)
        with_room(console, WIDTH).print(table)


def _knowledge(asker: Asker, data: EvalData, clean: Verdicts, options: CapabilitySection, counting: Counting) -> list[Condition]:
    facts = open_facts(options.facts, top=REPLACED_FACTS) if options.facts else None
    inside = data.test.in_slice("capability:knowledge")
    if not inside.any() and facts is not None:
        inside = _mentioned(data, facts)
    pairs, labels = _chosen(data, inside, options.pairs, counting.seed)
    if not pairs:
        return []
    found = [counting.condition("knowledge", "as asked", pairs, labels, clean)]
    if facts is None:
        return found
    about = {pair.pair_id: facts.about(pair.query, _item_text(pair)) for pair in pairs}
    texts = {pair_id: [fact.text for fact in known[:SHOWN_FACTS]] for pair_id, known in about.items()}
    told = [pair for pair in pairs if texts[pair.pair_id]]
    tag = "capability-knowledge-facts"
    verdicts = clean | asker.ask(tag, told, total=len(told), facts=lambda pair: texts[pair.pair_id])
    note = f"{len(told)} pairs have a fact"
    found.append(counting.condition("knowledge", "with facts", pairs, labels, verdicts, against=("as asked", clean), note=note))
    if not isinstance(facts, FactTable):
        return found
    plain = [with_words_resolved(pair, about[pair.pair_id]) for pair in pairs]
    changed = [new for new, pair in zip(plain, pairs, strict=True) if new != pair]
    verdicts = clean | asker.ask("capability-knowledge-resolved", changed, total=len(changed))
    note = f"{len(changed)} pairs have a word replaced"
    found.append(counting.condition("knowledge", "query resolved", pairs, labels, verdicts, against=("as asked", clean), note=note))
    return found


def with_words_resolved(pair: Pair, facts: list[Fact]) -> Pair:
    """The pair with the phrases of its facts replaced by their values, so that no word needs to be looked up."""
    found = [fact for fact in facts if fact.kind not in NOT_WORDS]
    if not found:
        return pair
    return replace(
        pair,
        query=with_values(pair.query, found),
        title=with_values(pair.title, found),
        attributes={key: with_values(value, found) for key, value in pair.attributes.items()},
        description=with_values(pair.description, found) if pair.description else pair.description,
        brand=with_values(pair.brand, found) if pair.brand else pair.brand,
    )


def _item_text(pair: Pair) -> str:
    return "\n".join([pair.title, *pair.attributes.values(), pair.description or "", pair.brand or ""])


def _mentioned(data: EvalData, facts: Facts) -> np.ndarray:
    """[N] bool: whether the table has a fact about the pair."""
    inside = np.zeros(len(data.test), dtype=bool)
    for pair in read_chosen(data.path, data.test.split, data.test.pair_ids, TEXT):
        inside[data.test.position[pair.pair_id]] = bool(facts.about(pair.query, _item_text(pair)))
    return inside


def _photo(asker: Asker, data: EvalData, clean: Verdicts, options: CapabilitySection, counting: Counting) -> list[Condition]:
    states = np.asarray([clean[pair_id].photo for pair_id in data.test.pair_ids], dtype=object)
    inside = data.test.in_slice("capability:multimodal")
    if not inside.any():
        inside = states != "none"
    pairs, labels = _chosen(data, inside & (states == "seen"), options.pairs, counting.seed)
    if not pairs:
        if not inside.any():
            return []
        pairs, labels = _chosen(data, inside, options.pairs, counting.seed)
        note = "this judge is shown no photo" if (states[inside] == "hidden").any() else "no photo could be read"
        return [counting.condition("photo", "without photo", pairs, labels, clean, note=note)]
    against = ("with photo", clean)

    def compared(name: str, some: list[Pair], verdicts: Verdicts, *notes: str) -> Condition:
        note = "; ".join((f"{mean_text(verdict_changed(some, clean, verdicts))} of the verdicts change", *notes))
        return counting.condition("photo", name, some, labels, verdicts, against=against, note=note)

    unread = int((inside & (states == "failed")).sum())
    note = f"{unread} more have a photo that could not be read" if unread else ""
    found = [counting.condition("photo", "with photo", pairs, labels, clean, note=note)]
    hidden = replace(asker.fmt, photo=False)
    found.append(compared("without photo", pairs, asker.ask("capability-photo-none", pairs, total=len(pairs), fmt=hidden)))
    swapped = swap_photos(pairs, counting.seed)
    if swapped:
        verdicts = asker.ask("capability-photo-swapped", swapped, total=len(swapped))
        left = len(pairs) - len(swapped)
        found.append(compared("swapped photo", swapped, verdicts, *[f"{left} more have no other photo"] * bool(left)))
    return found


def swap_photos(pairs: list[Pair], seed: int) -> list[Pair]:
    """The pairs, each with the photo of another pair: of the same category if known, and never an identical image. Pairs without
    such a photo are left out."""
    prints = [hashlib.blake2b(image_bytes(pair.image), digest_size=16).digest() for pair in pairs]
    rng = random.Random(seed)
    order = rng.sample(range(len(pairs)), len(pairs))
    by_category: dict[str | None, list[int]] = {}
    for index in order:
        by_category.setdefault(pairs[index].category, []).append(index)
    donors: dict[int, int] = {}
    for members in by_category.values():
        donors |= _turned(members, lambda index: prints[index])
    for index in order:
        if index not in donors:
            others = [other for other in range(len(pairs)) if prints[other] != prints[index]]
            if others:
                donors[index] = rng.choice(others)
    return [replace(pair, image=pairs[donors[index]].image) for index, pair in enumerate(pairs) if index in donors]


def _turned(members: list[int], print_of: Callable[[int], bytes]) -> dict[int, int]:
    """Maps each of `members` to another one with a different image. Members for which the rotation finds none are left out.

    It sorts equal images next to each other, then rotates the list by the size of the largest group of equal images.
    """
    groups: dict[bytes, list[int]] = {}
    for index in members:
        groups.setdefault(print_of(index), []).append(index)
    line = [index for group in groups.values() for index in group]
    step = max(map(len, groups.values()))
    turned = {index: line[(at + step) % len(line)] for at, index in enumerate(line)}
    return {index: donor for index, donor in turned.items() if print_of(index) != print_of(donor)}


def _rules(asker: Asker, data: EvalData, clean: Verdicts, options: CapabilitySection, counting: Counting) -> list[Condition]:
    if not data.rubric.rules:
        return []
    inside = data.test.in_slice("capability:rules")
    pairs, labels = _chosen(data, inside if inside.any() else ~inside, options.pairs, counting.seed)
    shown = {"full": "the whole rule book", "retrieved": "rules found by search", "tiers": "tiers", "name": "no rule and no tier"}
    note = f"own prompt: {shown[asker.fmt.detail]}"
    found, against = [counting.condition("rules", "as asked", pairs, labels, clean, note=note)], ("as asked", clean)

    def asked(name: str, tag: str, fmt, note: str = "") -> Condition:
        verdicts = asker.ask(tag, pairs, total=len(pairs), fmt=fmt)
        return counting.condition("rules", name, pairs, labels, verdicts, against=against, note=note)

    fmt = format_with_rules(asker, pairs, "capability-rules")
    if fmt is None:
        note = f"not asked: rules do not fit into prompt.max_prompt_tokens {asker.fmt.max_prompt_tokens}"
        found.append(counting.condition("rules", "with rules", [], {}, {}, note=note))
    elif fmt != asker.fmt:
        found.append(asked("with rules", "capability-rules-shown", fmt, shown[fmt.detail]))
    if asker.fmt.detail in ("full", "retrieved"):
        # The tiers stay in the prompt: without them an untrained judge knows neither the scale nor the answer format.
        tiers = replace(asker.fmt, detail="tiers")
        found.append(asked("without rules", "capability-rules-none", tiers, shown["tiers"]))
    return found


def _chosen(data: EvalData, inside: np.ndarray, limit: int, seed: int) -> tuple[list[Pair], Labels]:
    """About `limit` of the pairs in the mask [N], as whole queries, and their labels."""
    test, tier_ids = data.test, data.rubric.tier_ids
    indices = np.flatnonzero(inside)
    kept = indices[whole_queries([test.query_keys[index] for index in indices], limit, seed)]
    labels = {test.pair_ids[index]: tier_ids[test.gold[index]] for index in kept}
    return list(read_chosen(data.path, test.split, labels, image_roots=data.image_roots)), labels
