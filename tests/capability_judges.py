"""Judges with known abilities, and shop pairs in the form that an evaluation reads."""

import io
import json
import re

import numpy as np

from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.data_synth.shop.oracle_teacher import ShopProgram
from lore.data_synth.shop.world import World
from lore.data_synth.synthesis.facts import Fact
from lore.data_synth.synthesis.trace import Unreadable
from lore.engines.engine import EngineUsage, Sampling
from lore.eval.probes.capability import measure_capability
from lore.eval.sections import CapabilitySection
from lore.eval.testset import EvalData, load_split, read_chosen
from lore.judge.resumable import Asker
from lore.rubric.rubric import load_rubric, parse_rubric

SHOP = load_rubric("shop")
TIERS = SHOP.tier_ids
FULL = PromptFormat(order="answer_only", detail="full", max_prompt_tokens=8000)
RULE_LINE = re.compile(r"^- (L\d) (\S+), [^\s:]+: (.*)$", re.MULTILINE)
WORDS = {"five": 5, "ten": 10, "twenty-five": 25, "thirty": 30}
MEMORIZED = ShopProgram(SHOP)
# A reader of an item must skip the names of all product lines, even those that do not affect the verdict.
LINES = [Fact("", **fact) for fact in World(0).lexicon.facts() if fact["kind"] == "line"]


def rules_in(system: str) -> ShopProgram:
    """A program that applies only the tiers and numbers of the rules in a prompt, without the rest of the rubric."""
    stated = {rule_id: (tier, text.split(" E.g.")[0]) for tier, rule_id, text in RULE_LINE.findall(system)}
    raw = SHOP.model_dump()
    for rule in raw["rules"]:
        if rule["id"] not in stated:
            continue
        rule["tier"], text = stated[rule["id"]]
        words = "|".join(sorted(WORDS, key=len, reverse=True))
        if number := re.search(rf"(\d+|{words}) (?:to \d+ )?percent", text):
            value = WORDS.get(number[1]) or int(number[1])
            rule["params"] = {key: value if key == "share" else value / 100 for key in rule["params"]}
    return ShopProgram(parse_rubric(raw))


def pair_in(content) -> tuple[Pair, list[Fact]]:
    """The pair and the facts in a prompt."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part.get("text", "") for part in parts)

    def field(name):
        found = re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        return found[1] if found else None

    image = next((part["image"] for part in parts if part["type"] == "image"), None)
    if image is not None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
    attributes = dict(entry.split(": ", 1) for entry in (field("attributes") or "").split("; ") if entry)
    price = float(field("price")) if field("price") else None
    shown = re.findall(r"(?:^|; )([^;=]+) = ([^;(]+) \(([^,]+), ([^)]+)\)", field("facts") or "")
    facts = [Fact("", kind, dimension, phrase, value) for phrase, value, kind, dimension in shown]
    pair = Pair(
        pair_id="-",
        query=field("query"),
        title=field("title"),
        attributes=attributes,
        brand=field("brand"),
        price=price,
        image=image,
    )
    return pair, facts


class Reader:
    """Derives the verdict only from the rules in its prompt. Without readable rules the verdict is L1."""

    tokenizer, takes_images = None, True

    def __init__(self, memorized: bool = False):
        self.memorized, self.prompts, self.programs, self.usage = memorized, [], {}, EngineUsage()

    def score(self, prompts):
        rows = np.full((len(prompts), len(TIERS)), 0.1)
        for row, messages in zip(rows, prompts, strict=True):
            row[TIERS.index(self.tier(messages))] = 0.7
        return rows

    def tier(self, messages) -> str:
        self.prompts.append(messages)
        system = messages[0]["content"]
        system = system if isinstance(system, str) else system[0]["text"]
        if system not in self.programs:
            self.programs[system] = MEMORIZED if self.memorized else rules_in(system)
        program = self.programs[system]
        pair, facts = pair_in(messages[1]["content"])
        try:
            wishes = program.knowledge(pair, facts)
            rulings = program.rules(pair, wishes, program.multimodal(pair, wishes, LINES))
        except Unreadable:
            return "L1"
        return SHOP.verdict_over([ruling.tier for ruling in rulings])


def data_of(folder, pairs: list[Pair]) -> EvalData:
    folder.mkdir(parents=True, exist_ok=True)
    with PairWriter(folder / "test.parquet") as writer:
        for pair in pairs:
            writer.write(pair)
    return EvalData(folder, SHOP, load_split(folder, "test", SHOP), None)


def shop_pairs(count: int, kind: str = "general", photos: float = 0.4) -> list[Pair]:
    return list(World(7052, subsets={kind: 1.0}, photos=photos).pairs("test", count))


def asker_of(folder, engine, fmt=FULL) -> Asker:
    def opened():
        if engine is None:
            raise AssertionError("the engine was opened")
        return engine

    return Asker("judge", folder, opened, SHOP, fmt, Sampling())


def measured(folder, data, engine, fmt=FULL, *, samples=0, **options):
    """Conditions by name, and the clean verdicts, computed in the same way as in the stage."""
    asker = asker_of(folder / "judge", engine, fmt)
    clean = asker.ask("test", list_pairs(data))
    found = measure_capability(asker, data, clean, CapabilitySection(**options), samples=samples, seed=3)
    return {(row.capability, row.condition): row for row in found}, clean


def list_pairs(data) -> list[Pair]:
    return list(read_chosen(data.path, "test", data.test.pair_ids))


def facts_file(folder) -> str:
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in World(0).lexicon.facts()))
    return str(path)


def shown(messages) -> list:
    """Everything that a model sees of a prompt: the texts, and the photos as pixels."""
    contents = [message["content"] for message in messages]
    parts = [part for content in contents for part in ([{"text": content}] if isinstance(content, str) else content)]
    return [part["text"] if "text" in part else part["image"].tobytes() for part in parts]
