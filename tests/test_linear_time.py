"""Text from outside (queries, titles, descriptions, attributes, answers, rationales, headers) takes time that grows with its
length.

Every function of ROOMS that takes a text first, or that uses a pattern of its module, is timed on hostile shapes: by itself if a
text is all it needs, else by CALLS. A function that sees no text from outside is named in UNTIMED with the reason. A new function
that is neither fails `test_every_function_is_timed_or_excused`.
"""

import importlib
import inspect
import io
import json
import pkgutil
import random
import re
import re._constants as op
import re._parser as sre
import tempfile
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import nearby_town_for_tests as nearby
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers_for_tests as small

from lore.codec.grounding import citable, why_ungrounded
from lore.codec.item_text import item_text
from lore.codec.judgement import parse, render_answer, render_demands
from lore.codec.markdown import markdown_text
from lore.codec.prompt import PromptFormat, render
from lore.codec.sanitize import control_strings
from lore.data.importers import open_source
from lore.data.pair import Pair, query_key
from lore.data.rejected_rows import BadCell
from lore.data.row_validation import RowChecker
from lore.data.tables.times import cell_seconds
from lore.data_synth.perturb.material import Material
from lore.data_synth.perturb.wordings import load_wordings
from lore.data_synth.synthesis.trace import Draft, Evidence, Wish
from lore.data_synth.synthesis.verify import ALL as CHECKS
from lore.data_synth.synthesis.verify import Verifier
from lore.eval.derived_slices import derived_slices
from lore.nearby import sources
from lore.nearby.answer import check_answer
from lore.nearby.graph import load_relations
from lore.nearby.intent import understand
from lore.nearby.times import find_time
from lore.places.hours import MAX_CHARACTERS, Opening, opening
from lore.places.question import Candidate, Intent
from lore.recommend.importers import ITEM_COLUMNS
from lore.rewards.config import RewardsSection
from lore.rewards.reward import Rewards
from lore.rubric.demand import Demand, read_demands
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError
from lore.support.nearest import nearest

ROOMS = ["lore.codec", "lore.data", "lore.data.tables", "lore.data.importers", "lore.rewards", "lore.rubric.demand"]
ROOMS += ["lore.support.text", "lore.support.nearest", "lore.support.markdown", "lore.eval.derived_slices"]
ROOMS += [f"lore.data_synth.synthesis.{name}" for name in ("trace", "verify", "facts", "knowledge", "multimodal", "rules")]
ROOMS += ["lore.data_synth.perturb.rewrites", "lore.recommend.importers", "lore.recommend.section", "lore.recommend.source_rows"]
NEARBY = ("sources", "times", "gazetteer", "intent", "answer", "rules", "visits", "map_shapes")
ROOMS += [f"lore.nearby.{name}" for name in NEARBY]
ROOMS += ["lore.places", "lore.rubric.computed_rules"]

SHORT, LONG = 1_000, 8_000  # characters; the square of 8 is told from 8 on a busy machine
ENOUGH_SECONDS = 0.05  # a function that is done by then is fast enough; one of quadratic time is not
RUBRIC = load_rubric("rair")
FORMAT = PromptFormat()
DEMAND = Demand("colour", "red", "red", "title", "near", "L3")
PAIR = Pair(pair_id="p", query="red mug", title="red mug lumo", attributes={"colour": "red"}, description="a mug", label="L3")

SHAPES = {
    "one letter": "a",
    "spaces": " ",
    "line ends": "\n",
    "semicolons and line ends": ";\n \n",
    "angles": "<",
    "ampersands": "&",
    "quotes": '"',
    "opened": "[(",
    "closed": "])",
    "braces": "{",
    "dollars": "${",
    "digits": "1",
    "thousands": "1,111",
    "decimals": "0.5",
    "points": "a.",
    "backslashes": "\\",
    "combining marks": "\u0315\u0300",
    "emoji": "😀",
    "han": "红",
    "han and latin": "红a",
    "different han": None,
    "words": "red mug ",
    "different words": None,
    "dashes": "-",
    "fences": "--- user ",
    "rounds": "[Round 1",
    "colons": "a: ",
    "bars": " | ",
    "tags": "<think>",
    "closing tags": "</think>",
    "nested": None,
}
"""A text is as many copies as fit, or made by `_shape`."""

SLOW_SHAPES = ["semicolons and line ends", "angles", "combining marks", "nested"]
SLOW_SHAPES += ["han and latin", "different han", "different words"]
"""At 100,000 characters; the near-misses of each pattern come on top. All shapes would take minutes."""

WORDINGS = load_wordings("en")
MATERIAL = Material(RUBRIC, WORDINGS, WORDINGS.attacks.train)
CALLS = {
    "lore.codec.grounding.why_ungrounded": lambda text: [
        why_ungrounded(text, text, source, citable(replace(PAIR, title=text, description=text)), has_photo=False)
        for source in ("title", "none")
    ],
    "lore.codec.grounding.leaks": lambda text: _function("lore.codec.grounding.leaks")(text, replace(PAIR, description=text)),
    "lore.codec.judgement.parse": lambda text: [
        parse(written, RUBRIC, PromptFormat(order=order))
        for order in ("reason_first", "answer_first")
        for written in (text, f"<reason>{text}</reason><verdict>L3</verdict>{text}")
    ],
    "lore.codec.lexical_match.content_words": lambda text: _function("lore.codec.lexical_match.content_words")(text, "zh"),
    "lore.codec.lexical_match.missing_words": lambda text: _function("lore.codec.lexical_match.missing_words")(text, text[::-1]),
    "lore.codec.lexical_match.stands_apart": lambda text: [
        _function("lore.codec.lexical_match.stands_apart")(said, place)
        for said, place in ((text, text), (f"{text[: len(text) // 2]} end", f"end {text}"), ("red a mug", text), (text, "red mug"))
    ],
    "lore.codec.lexical_match._always_behind": lambda text: _function("lore.codec.lexical_match._always_behind")("不", "红", text),
    "lore.codec.prefix_ids.common_length": lambda text: _function("lore.codec.prefix_ids.common_length")(text, f"{text[:-1]}."),
    "lore.codec.reasoning.without_marks": lambda text: _function("lore.codec.reasoning.without_marks")(text),
    "lore.codec.reasoning.after_first_reasoning": lambda text: [
        _function("lore.codec.reasoning.after_first_reasoning")(begun, "<reason>")
        for begun in (text, f"x{text}", f"<think>{text}", f"<|channel|>final{text}")
    ],
    "lore.codec.reasoning._final_channel": lambda text: _function("lore.codec.reasoning._final_channel")(f"<|channel|>{text}<"),
    "lore.codec.sanitize.neutralize": lambda text: [_function("lore.codec.sanitize.neutralize")(text, c) for c in CONTROLS()],
    "lore.codec.sanitize.neutralize_attribute": lambda text: _function("lore.codec.sanitize.neutralize_attribute")(text, text),
    "lore.codec.sanitize.clean_rationale": lambda text: [
        _function("lore.codec.sanitize.clean_rationale")(text, control) for control in CONTROLS()
    ],
    "lore.rubric.demand.read_demands": lambda text: [read_demands(text), read_demands(f"colour: red | red{text}; {text}")],
    "lore.eval.derived_slices.derived_slices": lambda text: derived_slices([[]], [text], [1.0], [f"a{text}"], [text]),
    "lore.data.pair.pair_digest": lambda text: _function("lore.data.pair.pair_digest")(text, text, text),
    "lore.data.pair.make_pair_id": lambda text: _function("lore.data.pair.make_pair_id")(text, text),
    "lore.data.statistics._bounded": lambda text: _function("lore.data.statistics._bounded")(text, {}, 5, "slice", {}),
    "lore.data.tables.csv._dialect": lambda text: [
        _function("lore.data.tables.csv._dialect")(io.StringIO(begun + text), ["query"], ",", False) for begun in ("", "sep=;\n")
    ],
    "lore.support.text.shortened": lambda text: _function("lore.support.text.shortened")(text, 80),
    "lore.support.text.named": lambda text: _function("lore.support.text.named")(text, "--out"),
    "lore.support.nearest.nearest": lambda text: [nearest(text, ["title", f"b{text}"]), nearest("title", [text, *text.split()])],
    "lore.support.nearest.nearest_hint": lambda text: nearest(text[:90], [text[at : at + 90] for at in range(0, len(text), 9)]),
    "lore.data_synth.synthesis.facts.with_values": lambda text: _function("lore.data_synth.synthesis.facts.with_values")(text, []),
    "lore.data_synth.synthesis.knowledge.read": lambda text: _function("lore.data_synth.synthesis.knowledge.read")(text, RUBRIC),
    "lore.data_synth.synthesis.multimodal.read": lambda text: _function("lore.data_synth.synthesis.multimodal.read")(text, WISHES),
    "lore.data_synth.synthesis.rules.read": lambda text: _function("lore.data_synth.synthesis.rules.read")(text, WISHES),
    "lore.data_synth.synthesis.trace.one_object": lambda text: _function("lore.data_synth.synthesis.trace.one_object")(text, "a"),
    "lore.data_synth.perturb.rewrites._conversions": lambda text: [
        list(_function("lore.data_synth.perturb.rewrites._conversions")(written, MATERIAL))
        for written in (f"10 cm {text}", "10 cm, " * (len(text) // 7) + text[-9:])
    ],
    "lore.data_synth.perturb.rewrites.title_order": lambda text: _function("lore.data_synth.perturb.rewrites.title_order")(
        replace(PAIR, title=text), MATERIAL, random.Random(1)
    ),
    "lore.nearby.times.find_time": lambda text: _or_an_error(find_time, text, nearby.MONDAY),
    "lore.nearby.intent.understand": lambda text: _or_an_error(
        understand, text[-2000:], TOWN(), *nearby.HERE, nearby.MONDAY, NEEDS
    ),
    "lore.nearby.intent._known_place": lambda text: _function("lore.nearby.intent._known_place")(
        text, TOWN(), *nearby.HERE
    ),
    "lore.nearby.intent._unknown_places": lambda text: _function("lore.nearby.intent._unknown_places")(text, BY_PHRASE),
    "lore.nearby.intent._needs": lambda text: _function("lore.nearby.intent._needs")(text, BY_PHRASE),
    "lore.nearby.answer.check_answer": lambda text: check_answer(text, INTENT, CANDIDATES, TOWN()),
    "lore.nearby.answer._names_in": lambda text: _function("lore.nearby.answer._names_in")(text, TOWN()),
    "lore.nearby.answer._is_grounded": lambda text: [
        _function("lore.nearby.answer._is_grounded")(sentence, INTENT, CANDIDATES, TOWN())
        for sentence in (text, f"\ue000\uec00{text}")
    ],
    "lore.recommend.importers._item_values": lambda text: [
        _function("lore.recommend.importers._item_values")(dict.fromkeys(ITEM_COLUMNS, said), ITEMS_READ, Counter())
        for said in (text, f"[{text}", f"['{text}']")
    ],
    "lore.data.tables.times.cell_seconds": lambda text: [_or_bad_cell(cell_seconds, one) for one in (text, f"1{text}")],
    "lore.recommend.importers._id": lambda text: _or_bad_cell(_function("lore.recommend.importers._id"), "user_id", text),
    "lore.places.hours.opening": lambda text: opening(text[:MAX_CHARACTERS], 0.0, 0.0, datetime(2026, 1, 1), "US"),
    "lore.places.hours._parsed": lambda text: opening(text[:MAX_CHARACTERS], 0.0, 0.0, datetime(2026, 1, 1), "US"),
    "lore.nearby.sources._text": lambda text: _place_call("_text", "tag", text),
    "lore.nearby.sources._degrees": lambda text: _place_call("_degrees", "lat", text, 90),
    "lore.nearby.sources._time": lambda text: _place_call("_time", "starts", text, None),
}


def _or_an_error(function, *arguments) -> None:
    try:
        function(*arguments)
    except LoreError:
        pass


@cache
def TOWN():
    return nearby.small_town(Path(tempfile.mkdtemp()))


NEEDS = load_relations().needs
BY_PHRASE = {("coffee",): "coffee", ("quiet", "work"): "quiet_work", ("公", "园"): "park"}
INTENT = Intent("coffee", *nearby.HERE, when=nearby.MONDAY)
CANDIDATES = [Candidate(row, place, 80.0, 1.0, Opening("unknown"), 1.0, {}) for row, place in enumerate(nearby.PLACES[:4])]

ITEMS_READ = {name: [name] for name in ITEM_COLUMNS}


def _or_bad_cell(call: Any, *arguments: Any) -> None:
    try:
        call(*arguments)
    except BadCell:
        pass


def _place_call(name: str, *arguments: Any) -> None:
    try:
        getattr(sources, name)(*arguments)
    except BadCell:
        pass


WISHES = [Wish("colour", "red", "red")]

OWN = "a text of this program, of the recipe or of the checkpoint"
UNTIMED = {
    "lore.codec.chat_template._variables": OWN,
    "lore.codec.chat_template._dated": OWN,
    "lore.codec.lexical_match.function_words": OWN,
    "lore.codec.prompt._template": OWN,
    "lore.codec.prompt._messages": "joins texts",
    "lore.data.importers.table.may_name": "looks for a name of its own in a file's first megabyte",
    "lore.data.photo_places.stay_elsewhere": "a sentence around two paths",
    "lore.codec.sanitize._written_markers": OWN,
    "lore.codec.sanitize._markers_around": OWN,
    "lore.codec.sanitize._rationale_pattern": OWN,
    "lore.codec.sanitize._form": OWN,
    "lore.codec.sanitize.control_strings": OWN,
    "lore.codec.sanitize._without_control": "timed as neutralize",
    "lore.codec.sanitize._has_marker": "timed as neutralize",
    "lore.codec.sanitize._replacement": "timed as neutralize",
    "lore.codec.lexical_match._pieces": "timed as pieces",
    "lore.codec.lexical_match._place": "timed as missing_words",
    "lore.codec.lexical_match._stem": "timed as stem",
    "lore.codec.lexical_match._forms": "timed as forms",
    "lore.rewards.adversarial_answers._hacks": OWN,
    "lore.rewards.reward._one_number": OWN,
    "lore.data.images.decode_base64": "bytes of a photo",
    "lore.data.images._file_bytes": "path of a file",
    "lore.data.images._need_photo_file": "path of a file",
    "lore.data.label_distribution.from_median": "name of a tier; the row check has parsed the number",
    "lore.data.rejected_rows.is_rejected_file": "path of a file, of which the head is read",
    "lore.data.tables.text_tables._is_western": "path of a file; searched byte by byte",
    "lore.data.parquet.to_column": "name of a field",
    "lore.data.importers.open_source": "name of a source",
    "lore.data.importers.source_files": "name of a source",
    "lore.data.importers._located": "name of a source",
    "lore.data.importers.source_options": "name of a source",
    "lore.data.importers.rair._row": "name of a file",
    "lore.data.importers.rair._hub": "name of a data set",
    "lore.data_synth.synthesis.facts.open_facts": "path of a file",
    "lore.data_synth.synthesis.facts.fact_files": "path of a file",
    "lore.data_synth.synthesis.trace.failure_of": OWN,
    "lore.data_synth.synthesis.trace.failed_checks": OWN,
    "lore.data_synth.synthesis.verify._script": "one letter",
    "lore.data_synth.synthesis.verify.coverage": "timed in the pipeline",
    "lore.eval.derived_slices._named": "joins texts",
    "lore.nearby.times.read_time": "reads 100 characters; timed as find_time",
    "lore.nearby.times.number": "what NUMBER matches",
    "lore.nearby.times._moment": "timed as find_time",
    "lore.nearby.intent._named_need": "reads 100 characters; timed as _needs",
    "lore.nearby.intent._without": "timed as understand",
    "lore.nearby.intent.model_corrections": "asks a language model; its answer is read by parse_json",
    "lore.recommend.importers._opened": "the map that a user typed",
    "lore.places.hours.check_country": "the country that a user typed",
    "lore.nearby.sources._mapped": "the map that a user typed",
    "lore.nearby.sources._zone": "the time zone that a user typed",
}


@cache
def CONTROLS() -> list[frozenset[str]]:
    return [frozenset(), control_strings(small.inst()), control_strings(small.plain_turns())]


def _modules(room: str) -> list:
    module = importlib.import_module(room)
    inner = [one.name for one in pkgutil.iter_modules(getattr(module, "__path__", [])) if not one.ispkg]
    return [module, *(importlib.import_module(f"{room}.{name}") for name in inner)]


def _names(code) -> set[str]:
    """Names that a function reads, also in its comprehensions."""
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if inspect.iscode(inner)))


@cache
def found_functions() -> dict[str, tuple]:
    """(function, patterns that it uses) of every function of ROOMS that takes a text first or uses a pattern of its module."""
    found = {}
    for module in (module for room in ROOMS for module in _modules(room)):
        patterns = {name: value for name, value in vars(module).items() if isinstance(value, re.Pattern)}
        for name, value in vars(module).items():
            inner = inspect.unwrap(value) if callable(value) else None
            if not inspect.isfunction(inner) or inner.__module__ != module.__name__:
                continue
            first = next(iter(inspect.signature(inner).parameters.values()), None)
            uses = [patterns[used] for used in _names(inner.__code__) if used in patterns]
            if uses or (first is not None and str(first.annotation) in ("str", "<class 'str'>", "str | None")):
                found[f"{module.__name__}.{name}"] = (value, uses)
    return found


def _function(name: str):
    return found_functions()[name][0]


def _call(name: str):
    function = _function(name)
    if name in CALLS:
        return CALLS[name]
    return lambda text: list(made) if inspect.isgenerator(made := function(text)) else made


def _takes_a_text_alone(name: str) -> bool:
    _, *others = inspect.signature(inspect.unwrap(_function(name))).parameters.values()
    return all(one.default is not one.empty for one in others)


def _shape(shape: str, size: int) -> str:
    if shape == "different words":
        return " ".join(f"w{number:x}" for number in range(size // 6))[:size]
    if shape == "different han":
        return " ".join(f"{chr(0x4E00 + number // 20_000)}{chr(0x4E00 + number % 20_000)}" for number in range(size // 3))
    if shape == "nested":
        return ("[IN" * (size // 6) + "ST]" * (size // 6))[:size]
    return (SHAPES[shape] * size)[:size]


def near_misses(pattern: re.Pattern) -> list[tuple[str, str]]:
    """(start, repeated) of texts that a pattern nearly matches: its repeats repeated, and its whole match without the end."""
    found = []

    def sample(tree) -> str:
        out = ""
        for kind, value in tree:
            out += one(kind, value, out)
        return out

    def one(kind, value, before: str) -> str:
        if kind is op.LITERAL:
            return chr(value)
        if kind is op.IN:
            return _member(value)
        if kind is op.NOT_LITERAL:
            return "~" if value != ord("~") else "a"
        if kind is op.ANY:
            return "a"
        if kind is op.BRANCH:
            made = [sample(branch) for branch in value[1]]
            found.extend((before, part) for part in made[:4] if part)
            return made[0]
        if kind is op.SUBPATTERN:
            return sample(value[-1])
        if kind is op.ATOMIC_GROUP:
            return sample(value)
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            least, most, inner = value
            part = sample(inner)
            if part and (most is op.MAXREPEAT or most > 8):
                found.append((before, part))
            return part * max(1, least)
        return ""

    whole = sample(sre.parse(pattern.pattern, pattern.flags))
    return list(dict.fromkeys([*found, ("", whole), ("", whole[:-1])]))


def _member(items) -> str:
    kind, value = items[0]
    if kind is op.NEGATE:
        excluded = re.compile("[" + "".join(_source(item) for item in items) + "]")
        return next(letter for letter in "a \n1-~红" if excluded.match(letter))
    if kind is op.LITERAL:
        return chr(value)
    if kind is op.RANGE:
        return chr(value[0])
    words = {"SPACE": " ", "NOT_SPACE": "a", "DIGIT": "1", "NOT_DIGIT": "a", "WORD": "a", "NOT_WORD": "-"}
    return words[str(value).removeprefix("CATEGORY_")]


def _source(item) -> str:
    kind, value = item
    if kind is op.NEGATE:
        return "^"
    if kind is op.LITERAL:
        return re.escape(chr(value))
    if kind is op.RANGE:
        return f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}"
    letters = {"SPACE": r"\s", "NOT_SPACE": r"\S", "DIGIT": r"\d", "NOT_DIGIT": r"\D", "WORD": r"\w", "NOT_WORD": r"\W"}
    return letters[str(value).removeprefix("CATEGORY_")]


def seconds(call, text: str) -> float:
    """Processor time of one call: other programs do not count. A refusal is an answer."""
    start = time.thread_time()
    try:
        call(text)
    except (LoreError, ValueError):
        pass
    return time.thread_time() - start


def grows_too_fast(call, make, short: int, long: int, enough: float) -> str:
    """What was measured if the time of `call` on `make(size)` grows faster than the size; empty if it does not, or is small.

    Caches of texts are passed by: every text ends in other characters.
    """
    marks = iter(range(10**9))

    def measured(size: int) -> float:
        return seconds(call, f"{make(size)}{next(marks)}")

    measured(10)  # imports and tables
    slow = measured(long)
    if slow < enough:
        return ""
    fast = min(measured(short) for _ in range(3))
    for _ in range(1 if slow > 10 * enough else 6):  # a busy machine makes one measurement long, not the shortest of several
        if slow < 3 * long / short * fast:
            break
        slow, fast = min(slow, measured(long)), min(fast, measured(short))
    if slow < enough or slow < 3 * long / short * fast:
        return ""
    return f"{short:,} characters take {fast:.4f} s, {long:,} take {slow:.4f} s"


def _texts(name: str, shapes):
    """(name of the shape, function from size to text) for a function: the shapes and the near-misses of its own patterns."""
    for shape in shapes:
        yield shape, lambda size, shape=shape: _shape(shape, size)
    for pattern in found_functions()[name][1]:
        for start, part in near_misses(pattern):
            yield f"{start!a} and {part!a} many times", lambda size, start=start, part=part: (start + part * size)[:size]


def _assert_linear(name: str, short: int, long: int, enough: float, shapes=SHAPES) -> None:
    call = _call(name)
    for shape, make in _texts(name, shapes):
        said = grows_too_fast(call, make, short, long, enough)
        assert not said, f"{shape}: {said}"


TIMED = sorted(found_functions().keys() - UNTIMED.keys())


def test_every_function_is_timed_or_excused():
    unknown = [name for name in TIMED if name not in CALLS and not _takes_a_text_alone(name)]
    assert not unknown, f"time these in CALLS, or say in UNTIMED why they see no text from outside: {unknown}"
    gone = (CALLS.keys() | UNTIMED.keys()) - found_functions().keys()
    assert not gone, f"no longer there: {gone}"
    assert not CALLS.keys() & UNTIMED.keys()
    assert len(TIMED) > 40


@pytest.mark.parametrize("name", TIMED)
def test_a_function_takes_time_that_grows_with_the_length(name):
    _assert_linear(name, SHORT, LONG, ENOUGH_SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMED)
def test_a_hundred_thousand_characters_take_ten_times_as_long_as_ten_thousand(name):
    _assert_linear(name, 10_000, 100_000, 0.5, SLOW_SHAPES)


def _through_the_pipeline(text: str) -> None:
    """One row with `text` in every field, from the row check to the reward of an answer that says the same text."""
    checker = RowChecker(RUBRIC)
    title, query = text[:10_000], text[:1_000]
    raw = {"query": f"mug {query}", "title": f"mug {title}"[:10_000], "description": text, "category": title, "label": "L3"}
    pair, _ = checker.check(raw | {"attributes": {f"k{number}": title for number in range(10)}})
    checker.check(dict.fromkeys(("query", "title", "price", "label", "slices", "attributes", "image"), text))
    whole = Pair(pair_id="p", query=text, title=text, description=text, attributes={text: text}, brand=text, label="L3")
    for one in filter(None, (pair, whole)):
        one.demands = [replace(DEMAND, wanted=text, found=text)]
        item_text(one), markdown_text(one.title), query_key(one.query), derived_slices([[]], [one.query], [None], [text], [text])
        rationale = render_demands([replace(DEMAND, wanted=text, found=text)] * 2)
        answer = render_answer(parse(f"<reason>{rationale}</reason>\n<verdict>L3</verdict>", RUBRIC, FORMAT), RUBRIC, FORMAT)
        for said in (answer, f"<reason>colour: {text} | {text} (description) | near L3; {text}</reason>\n<verdict>L3</verdict>"):
            read = REWARDS.read(said, 100)
            REWARDS.parts([read], [one])
    wishes, evidence = [Wish("colour", text, text)], [Evidence(text, "description")]
    draft = Draft(wishes=wishes, evidence=evidence, tier="L3", demands=[DEMAND], rationale=rationale, caption=text)
    VERIFIER.check(draft, whole)


REWARDS = Rewards(RewardsSection(grounding=1.0, demands=1.0, rules=1.0, mismatch=1.0), RUBRIC, FORMAT)
VERIFIER = Verifier([name for name in CHECKS if name != "one_verdict"], RUBRIC)
HARD_SHAPES = ["spaces", "bars", "semicolons and line ends", "angles", "different words", "han and latin", "combining marks"]


@pytest.mark.parametrize("shape", HARD_SHAPES)
def test_a_row_takes_time_that_grows_with_its_texts(shape):
    said = grows_too_fast(_through_the_pipeline, lambda size: _shape(shape, size), SHORT, LONG, 0.3)
    assert not said


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["semicolons and line ends", "han and latin"])
def test_a_row_of_a_hundred_thousand_characters_takes_ten_times_as_long_as_one_of_ten_thousand(shape):
    assert not grows_too_fast(_through_the_pipeline, lambda size: _shape(shape, size), 10_000, 100_000, 1.0)


def _as_a_prompt(text: str) -> None:
    """The prompt of a pair whose texts are cut to the budget, by a tokenizer that counts each cut."""
    pair = replace(PAIR, query=text[:500], title=text, description=text, attributes={f"k{at}": text[at::20] for at in range(20)})
    render(pair, RUBRIC, PromptFormat(detail="name", max_prompt_tokens=4096), tokenizer=small.chatml())


@pytest.mark.parametrize(
    ("short", "long", "enough"), [(SHORT, LONG, ENOUGH_SECONDS), pytest.param(10_000, 100_000, 0.5, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("shape", ["emoji", "different words"])
def test_a_prompt_takes_time_that_grows_with_the_texts_that_it_cuts(shape, short, long, enough):
    assert not grows_too_fast(_as_a_prompt, lambda size: _shape(shape, size), short, long, enough)


def _header(folder, columns: int, names: str) -> Path:
    path = folder / f"{columns}.{names}"
    titles = [f"column_{number}" for number in range(columns)]
    if names == "csv":
        path.write_text(",".join(titles) + "\n" + ",".join(["x"] * columns) + "\n")
    elif names == "jsonl":
        path.write_text(json.dumps(dict.fromkeys(titles, "x")) + "\n")
    else:
        pq.write_table(pa.table({title: ["x"] for title in titles}), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", pytest.param("parquet", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("short", "long"), [(1_000, 8_000), pytest.param(10_000, 100_000, marks=pytest.mark.slow)])
def test_a_table_takes_time_that_grows_with_its_columns(tmp_path, kind, short, long):
    if kind == "parquet" and long > 10_000:
        pytest.skip("pyarrow itself takes minutes")
    files = {columns: _header(tmp_path, columns, kind) for columns in (short, long)}

    def read(text: str) -> None:
        path = files[long if len(text) > short + 100 else short]
        for columns in ("query=column_1,title=column_2", "query=colum_1,title=nothing_like_it"):
            source = open_source("table", path, options={"map": columns})
            list(source.rows), source.extra_columns()

    assert not grows_too_fast(read, lambda size: "x" * size, short, long, 0.2 if long < 10_000 else 2.0)
