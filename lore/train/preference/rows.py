"""Builds preferences and renders them as training rows, with the same rendering as stage sft.

A pool gives preferences of samples with the correct label over samples with another one. Tables give preferences of raters. An
answer with a format failure is never chosen, equal answers are no preference, and invalid rows are rejected with a reason.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lore.codec.chat_template import answer_ids, template_tokens
from lore.codec.judgement import FormatFailure, parse, render_answer
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.data.rejected_rows import Rejection, short
from lore.data.tables.any_table import table_records
from lore.data.tables.ids import known_as, spreadsheet_hint
from lore.engines.chat import turn_end
from lore.rubric.cost_matrix import cost_matrix
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.train.common.arrow_rows import IGNORE, IMAGE
from lore.train.judge.rows import gold, sft_row

_ENDS = [("length", pa.int32()), ("tier", pa.string()), ("pair_id", pa.string()), ("source", pa.string())]
_IDS, _TEXT = pa.list_(pa.int32()), pa.string()
YES, NO = ("true", "1", "yes"), ("false", "0", "no")
BLOCK = 256  # pairs per interleaved block: more than most steps have
FIELDS = {"dpo": ("chosen", "rejected"), "kto": ("completion",)}


@dataclass(frozen=True, slots=True)
class Preference:
    """Answers to one pair, without the end-of-turn token. dpo: answers {chosen, rejected}; kto: {completion}, and good."""

    pair_id: str
    answers: dict[str, str]
    source: str
    good: bool | None = None
    cut: frozenset[str] = frozenset()
    """Names of truncated answers, which get no end-of-turn token."""


def preference_schema(stage: str, photos: bool) -> pa.Schema:
    """Columns of a row: token ids for TRL's text collators, or texts and photos for its vision collators; answer lengths."""
    names = FIELDS[stage]
    if photos:
        columns = [("prompt", _TEXT), *((name, _TEXT) for name in names), ("images", pa.list_(IMAGE))]
    else:
        columns = [("prompt_ids", _IDS), *((f"{name}_ids", _IDS) for name in names)]
    columns += [("label", pa.bool_())] if stage == "kto" else []
    return pa.schema(columns + [(f"{name}_tokens", pa.int32()) for name in names] + _ENDS)


def from_pool(table: pa.Table, pairs: list[Pair], stage: str, section: Any, rubric: Rubric, fmt: PromptFormat, seed: int) -> list:
    """Preferences for the selected rows of a pool, in row order. section.limit keeps those with the lowest pass rates.

    A row that occurs twice (label_weight) gives different preferences the second time, if there are enough samples.
    """
    cost = cost_matrix(rubric.relevant_mask)
    found, seen = [], Counter()
    for row, pair in zip(table.select(["pair_id", "label", "pass_rate", "samples"]).to_pylist(), pairs, strict=True):
        turn = seen[pair.pair_id]
        seen[pair.pair_id] += 1
        rng = np.random.default_rng([seed, turn, *pair.pair_id.encode(errors="surrogatepass")])
        good, bad = _good_and_bad(row, pair, section, rubric, fmt, cost, rng)
        made = _compared(pair, good, bad, section.per_prompt, turn) if stage == "dpo" else _single(pair, good, bad, section, turn)
        found += [(row["pass_rate"], preference) for preference in made]
    if section.limit is not None and len(found) > section.limit:
        found = sorted(found, key=lambda item: item[0])[: section.limit]
    chosen = [preference for _, preference in found]
    return _interleaved(chosen) if stage == "kto" and section.pool is not None and section.pool.order != "random" else chosen


def _interleaved(preferences: list[Preference]) -> list[Preference]:
    """Interleaves the answers of BLOCK consecutive pairs: one answer of each pair, then a second one, and so on.

    KTO pairs a prompt with the answer of an adjacent row, which has to belong to another prompt, and a curriculum keeps this
    order. The good answers of a pair precede its bad ones; every second pair is reversed, so that each step has both kinds.
    """
    pairs = [list(answers) for _, answers in groupby(preferences, key=lambda preference: preference.pair_id)]
    pairs = [answers[::-1] if number % 2 else answers for number, answers in enumerate(pairs)]
    blocks = (pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK))
    return [answer for block in blocks for turn in zip_longest(*block) for answer in turn if answer is not None]


def _good_and_bad(row, pair, section, rubric, fmt, cost, rng) -> tuple[list[tuple[str, str]], list[tuple[str, bool]]]:
    """Distinct good answers as (text, source) and distinct bad answers as (text, cut), in the order of a random permutation of the
    samples, so frequent texts tend to come early."""
    good, bad = {}, {}
    for index in rng.permutation(len(row["samples"])):
        sample = row["samples"][index]
        text, read = sample["text"].strip(), parse(sample["text"], rubric, fmt)
        if isinstance(read, FormatFailure):
            if section.failures and text:
                bad.setdefault(text, (cost[rubric.index(pair.label), -1], sample["truncated"]))
        elif read.tier == pair.label:
            good.setdefault(text, "pool")
        else:
            bad.setdefault(text, (cost[rubric.index(pair.label), rubric.index(read.tier)], False))
    if not good and section.gold and (pair.rationale or fmt.order == "answer_only"):
        good[render_answer(gold(pair), rubric, fmt)] = "gold"
    ordered = sorted(bad, key=lambda text: -bad[text][0]) if section.wrong == "farthest" else bad
    return list(good.items()), [(text, bad[text][1]) for text in ordered if text not in good]


def _compared(pair: Pair, good: list, bad: list, count: int, turn: int) -> Iterator[Preference]:
    """Up to `count` distinct comparisons; a later `turn` continues after those of earlier turns."""
    if not good or not bad:
        return
    combinations = len(good) * len(bad)
    for number in range(min(count, combinations)):
        k = (turn * count + number) % combinations
        wrong = k % len(bad)
        (text, source), (other, cut) = good[(wrong + k // len(bad)) % len(good)], bad[wrong]
        answers = {"chosen": text, "rejected": other}
        yield Preference(pair.pair_id, answers, source, cut=frozenset({"rejected"} if cut else ()))


def _single(pair: Pair, good: list, bad: list, section: Any, turn: int) -> Iterator[Preference]:
    for number in range(min(section.per_prompt, len(good))):
        text, source = good[(turn * section.per_prompt + number) % len(good)]
        yield Preference(pair.pair_id, {"completion": text}, source, True)
    for number in range(min(section.per_prompt, len(bad))):
        text, cut = bad[(turn * section.per_prompt + number) % len(bad)]
        yield Preference(pair.pair_id, {"completion": text}, "pool", False, frozenset({"completion"} if cut else ()))


def from_table(
    path: str, stage: str, known: set[str], rubric: Rubric, fmt: PromptFormat
) -> Iterator[tuple[int, Preference] | Rejection]:
    """(row number, preference) for every valid row of a rater's table, and a Rejection for every other row.

    known: ids of the data section's pairs. Raises LoreError if the file or a column is missing.
    """
    names = FIELDS[stage]
    required = ("pair_id", *names, *(["good"] if stage == "kto" else []))
    seen: dict[tuple[str, ...], bool | None] = {}
    spelled = known_as(known)
    for record in table_records(Path(path), required, ["source"], what="preferences.tables: "):
        if isinstance(record, Rejection):
            yield record
            continue
        number, cells = record
        if cells.get("pair_id") is not None:
            cells["pair_id"] = spelled(cells["pair_id"])
        problem = _table_problem(cells, stage, known, rubric, fmt)
        if problem is None:
            answers = {name: cells[name].strip() for name in names}
            good = _yes_or_no(cells["good"]) if stage == "kto" else None
            key = (str(cells["pair_id"]), *answers.values())
            if key in seen and seen[key] is good:
                problem = (names[0], "duplicate", answers[names[0]], "each row once")
            elif key in seen:
                problem = ("good", "contradiction", str(good), f"{seen[key]}, as in an earlier row for the same answer")
            elif stage == "dpo" and (key[0], key[2], key[1]) in seen:
                problem = (names[0], "contradiction", answers[names[0]], "the preference of an earlier row, which is the opposite")
            else:
                seen[key] = good
                yield number, Preference(key[0], answers, str(cells.get("source") or Path(path).name), good)
                continue
        field, reason, found, expected = problem
        yield Rejection(path, number, field, reason, str(short(found)), expected, short(dict(cells)))


def _table_problem(cells: dict, stage: str, known: set[str], rubric: Rubric, fmt: PromptFormat) -> tuple | None:
    """(field, reason, found, expected) for an invalid row; None for a valid one."""
    pair_id = cells.get("pair_id")
    if pair_id is None or str(pair_id) not in known:
        return "pair_id", "unknown_pair", str(pair_id), f"the pair_id of a pair in the data section.{spreadsheet_hint([pair_id])}"
    for name in FIELDS[stage]:
        if not isinstance(cells.get(name), str) or not cells[name].strip():
            return name, "empty", repr(cells.get(name)), "the text of an answer"
    good = None
    if stage == "kto":
        good = _yes_or_no(cells.get("good"))
        if good is None:
            return "good", "field_type", repr(cells.get("good")), "true or false"
    elif cells["chosen"].strip() == cells["rejected"].strip():
        return "rejected", "equal_answers", cells["rejected"], "an answer that differs from the chosen one"
    name = FIELDS[stage][0]
    if good is not False and isinstance(read := parse(cells[name], rubric, fmt), FormatFailure):
        return name, read.reason, cells[name], "a valid answer in the format of prompt.order"
    return None


def _yes_or_no(value: Any) -> bool | None:
    text = str(value).strip().lower()
    return True if text in YES else False if text in NO else None


class Renderer:
    """Renders preferences as rows of preference_schema. Consecutive rows of the same pair share the rendered prompt."""

    def __init__(self, rubric: Rubric, fmt: PromptFormat, processor: Any, max_tokens: int):
        self.rubric, self.fmt, self.processor, self.max_tokens = rubric, fmt, processor, max_tokens
        self.tokenizer, self.end = getattr(processor, "tokenizer", processor), turn_end(processor)
        self.specials = {*self.tokenizer.all_special_tokens, *template_tokens(processor), getattr(processor, "image_token", None)}
        self._last: tuple[str, dict[str, Any]] | None = None

    def row(self, pair: Pair, preference: Preference) -> dict[str, Any]:
        """The training row. Raises LoreError if it cannot be rendered (ImageError for the photo) or is too long."""
        for name, text in preference.answers.items():
            if held := [token for token in self.specials if token and token in text]:
                raise LoreError(f"{name} contains the control token {held[0]!r}, which would end the turn or be read as a photo")
        prompt = self._prompt(pair)
        answers = {name: text + ("" if name in preference.cut else self.end) for name, text in preference.answers.items()}
        ids = {name: answer_ids(self.processor, text) for name, text in answers.items()}
        length = prompt["prompt_length"] + max(map(len, ids.values()))
        if length > self.max_tokens:
            raise LoreError(
                f"pair {pair.pair_id}: prompt and answer have {length} tokens, train.max_tokens is {self.max_tokens}.\n"
                "Truncation would remove the verdict: raise train.max_tokens or lower prompt.max_prompt_tokens."
            )
        row = {f"{name}_tokens": len(found) for name, found in ids.items()}
        row |= {"length": length, "tier": pair.label, "pair_id": pair.pair_id, "source": preference.source}
        row |= {} if preference.good is None else {"label": preference.good}
        if "prompt_ids" in prompt:
            return row | {"prompt_ids": prompt["prompt_ids"]} | {f"{name}_ids": found for name, found in ids.items()}
        return row | {"prompt": prompt["prompt"], "images": prompt["images"]} | answers

    def _prompt(self, pair: Pair) -> dict[str, Any]:
        """The prompt of the pair's sft row: token ids, or text and photos."""
        if self._last is None or self._last[0] != pair.pair_id:
            row = sft_row(replace(pair, label=pair.label or self.rubric.tier_ids[0]), self.rubric, self.fmt, self.processor)
            if "labels" in row:
                ids = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORE]
                row = {"prompt_ids": ids, "prompt_length": len(ids)}
            self._last = (pair.pair_id, row)
        return self._last[1]
