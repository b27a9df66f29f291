"""The card of a synthesized set: numbers that add up, text that does nothing, a folder that `datasets` reads."""

import random
import re
from collections import Counter

import pytest
import yaml
from traces_for_tests import make_trace

from lore.codec.markdown import markdown_text
from lore.data.parquet import PairWriter
from lore.data_synth.shop.world import World
from lore.data_synth.synthesis.dataset_card import card_text
from lore.data_synth.synthesis.summary import MAX_KEYS, OTHERS, SAMPLES, Counts, first_place, tables
from lore.data_synth.synthesis.trace import Attempt, Reply
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

HOSTILE = (
    "<script>alert(1)</script> | x\n\n## y ![i](https://a.example/i.png) `c` www.a.example [l](javascript:1) &lt;b&gt; "
    "\x1b[31m \u202e $z$"
)
FACTS = {
    "title": "my set",
    "rubric": load_rubric("shop"),
    "teachers": ["teacher: some/model (endpoint), temperature 0.7"],
    "recipe": "stage: synthesize\nrun: my-set\n",
    "seconds": 75.0,
    "budget": ["930 tokens, 0.0030 US dollars"],
    "complete": True,
    "splits": ["train"],
}


def counted(traces, **options) -> Counts:
    counts = Counts(**options)
    for trace in traces:
        counts.add(trace)
    return counts


def some_traces(count=60):
    kinds = [
        {},
        {"hinted": True},
        {"failed": {"verdict": "says L2, the human label is L3"}, "label": "L2", "slices": ["hard"]},
        {
            "failed": {"grounding": "colour: red is nowhere", "verdict": "says L2"},
            "slices": ["hard", "capability:rules"],
        },
        {"failure": "multimodal: no JSON object", "tier": None, "demands": [], "rationale": ""},
    ]
    return [make_trace(number, **kinds[number % len(kinds)]) for number in range(count)]


def rows(counts, title, tier_ids=None) -> dict[str, list[str]]:
    return {row[0]: row[1:] for table in tables(counts, tier_ids) if table.title == title for row in table.rows}


def test_pairs_in_and_out_add_up_by_tier_slice_check_and_step():
    counts = counted(some_traces())
    assert counts.pairs == 60 and sum(counts.accepted.values()) == 24 and sum(counts.hinted.values()) == 12
    tiers = rows(counts, "Pairs by tier", ["L1", "L2", "L3", "L4"])
    assert tiers == {
        "L2": ["12", "0", "0.0%", "0", "12"],
        "L3": ["48", "24", "50.0%", "12", "24"],
        "all": ["60", "24", "40.0%", "12", "36"],
    }
    assert list(tiers) == ["L2", "L3", "all"]
    assert rows(counts, "Acceptance by capability") == {"knowledge": ["36", "24", "66.7%"], "rules": ["12", "0", "0.0%"]}
    assert rows(counts, "Acceptance by slice")["hard"] == ["24", "0", "0.0%"]
    failed = rows(counts, "Failed checks")
    assert failed["verdict"] == ["24", "40.0%", "48", "50.0%"] and failed["unreadable"] == ["12", "20.0%", "24", "25.0%"]
    assert rows(counts, "Attempts per pair") == {"1": ["24", "40.0%"], "2": ["36", "60.0%"]}
    places = {name.partition(":")[0]: values[0] for name, values in rows(counts, "Where rejected pairs fail").items()}
    assert places == {"knowledge": "0", "multimodal": "24", "rules": "0", "verdict": "12", "form": "0"}
    costs = rows(counts, "Answers of the teachers")
    assert costs["rules"] == ["60", "6,000", "600", "0.0600"] and costs["all"] == ["180", "18,000", "1,800", "0.1800"]


@pytest.mark.parametrize(
    "place, changes",
    [
        ("knowledge", {"failed": {"verdict": "x", "rules": "x", "coverage": "x"}}),
        ("knowledge", {"failure": "knowledge: no demand"}),
        ("multimodal", {"failure": "caption: an empty caption"}),
        ("rules", {"failed": {"aggregate": "x", "length": "x"}}),
        ("verdict", {"failed": {"verdict": "x", "length": "x"}}),
        ("form", {"failed": {"a_check_of_tomorrow": "x"}}),
        ("form", {"failure": "something else"}),
    ],
)
def test_a_rejected_pair_counts_at_the_first_step_that_went_wrong(place, changes):
    assert first_place(make_trace(**changes)) == place


def test_an_answer_that_attempts_share_counts_once_with_its_pair():
    reply = Reply("caption", "same", "h", "t", "x", 50, 5, 0.5)
    counts = counted(
        [make_trace(replies=[reply, reply], attempts=[Attempt(0, False, "L3", ["verdict"]), Attempt(1, False, "L3", [])])]
    )
    assert rows(counts, "Answers of the teachers")["caption"] == ["1", "50", "5", "0.5000"]
    assert rows(counts, "Failed checks") == {"verdict": ["0", "0.0%", "1", "50.0%"]}


def test_counts_are_the_same_in_any_order_and_in_parts():
    traces = some_traces(200)
    whole = counted(traces)
    random.Random(1).shuffle(traces)
    one, other = counted(traces[:70]), counted(traces[70:])
    one.merge(other)
    usd = [counts.steps["rules"].pop("usd") for counts in (whole, one)]
    for counts in (whole, one):
        for step in counts.steps.values():
            step.pop("usd", None)
    assert one == whole and usd[0] == pytest.approx(usd[1])
    assert len(whole.samples) == SAMPLES
    assert [s["rank"] for s in counted(traces, seed=1).samples] != [s["rank"] for s in whole.samples]
    with pytest.raises(LoreError, match="seeds 0 and 1"):
        whole.merge(Counts(seed=1))


def test_every_trace_has_the_same_chance_to_be_a_sample():
    drawn = Counter()
    traces = [make_trace(number, title=f"title {number}") for number in range(100)]
    for seed in range(60):
        drawn.update(sample["title"] for sample in counted(traces, seed=seed).samples)
    assert drawn.total() == 60 * SAMPLES and len(drawn) == 100 and max(drawn.values()) < 30


def test_memory_does_not_grow_with_names_that_never_repeat():
    numbers = range(MAX_KEYS + 500)
    counts = counted(make_trace(n, slices=[f"s{n}"], failed={f"c{n}": "x"}, label=f"L{n}") for n in numbers)
    for counter in (counts.given, counts.slices, counts.checks, counts.attempt_checks):
        assert len(counter) == MAX_KEYS + 1 and counter[OTHERS] >= 500
    assert counts.pairs == MAX_KEYS + 500
    card = card_text(counts, **FACTS)
    assert len(re.findall(r"^\| s\d", card, re.MULTILINE)) == 39 and "smaller slices are not shown" in card and len(card) < 100_000


def test_strangers_text_does_nothing_in_a_card():
    traces = [
        make_trace(0, query=HOSTILE, title=HOSTILE, rationale=HOSTILE, slices=[HOSTILE], label=HOSTILE),
        make_trace(1, failed={HOSTILE: HOSTILE}, tier=HOSTILE),
        make_trace(2, failure=HOSTILE),
    ]
    recipe = "run: x\n# ```\n# </code><script>\n"
    card = card_text(counted(traces), **{**FACTS, "title": HOSTILE, "teachers": [HOSTILE], "budget": [HOSTILE], "recipe": recipe})
    body, _, shown_recipe = card.partition("## Recipe")
    body = body.partition("\n---\n")[2]
    assert shown_recipe.startswith("\n\n````yaml") and shown_recipe.endswith("\n````\n")
    assert not re.search(r"<[a-z/!]", body) and "\x1b" not in card and "\u202e" not in card
    assert "https://" not in body and "www." not in body
    shown = [line for line in body.splitlines() if "script" in line]
    assert len(shown) > 8 and not any(re.search(r"(?<!\\)[\[\]`$*_]", line) for line in shown)
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert sum("y !" in line for line in headings) == 1  # inside the title alone
    widths = {}
    for line in body.splitlines():
        if line.startswith("|"):
            widths.setdefault(len(re.findall(r"(?<!\\)\|", line)), []).append(line)
    assert all(len(lines) >= 2 for lines in widths.values())
    for block in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_plain_text_stays_readable():
    assert markdown_text("red kettle, 40 cm (title) - L4; fits") == "red kettle, 40 cm (title) - L4; fits"
    assert markdown_text("colour: red | scarlet") == "colour: red \\| scarlet" and markdown_text("台灯 & 灯") == "台灯 &amp; 灯"
    assert len(markdown_text("x" * 500, 100)) == 100 and markdown_text("a\\|b") == "a\\\\\\|b"


def test_a_card_says_what_it_holds_and_whether_it_is_whole():
    counts = counted(some_traces())
    card = card_text(counts, **FACTS)
    said = ("# my set", "24 (40.0%)", "some/model", "75 seconds", "930 tokens", "stage: synthesize", "20 random traces")
    for text in (*said, f"hash {FACTS['rubric'].hash}"):
        assert text in card
    assert "Incomplete" not in card and "Incomplete" in card_text(counts, **{**FACTS, "complete": False})
    empty = card_text(Counts(), **{**FACTS, "splits": []})
    assert "configs" not in empty.split("---\n")[1] and "Of 0 rated pairs 0 (-)" in empty


@pytest.mark.parametrize("language", ["en", "zh"])
def test_datasets_reads_the_folder_with_the_card_beside_its_files(tmp_path, language):
    datasets = pytest.importorskip("datasets")
    world, splits = World(language=language), ["train", "dev", "my-test"]
    for split in splits:
        with PairWriter(tmp_path / f"{split}.parquet") as writer:
            for pair in world.pairs("train", 8, start=8 * splits.index(split)):
                writer.write(pair)
    card = card_text(counted(some_traces()), **{**FACTS, "splits": splits, "language": language})
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    found = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {name: len(found[name]) for name in found} == {"train": 8, "dev": 8, "my_test": 8}
    expected = list(world.pairs("train", 8))
    assert [(row["query"], row["rationale"]) for row in found["train"]] == [(pair.query, pair.rationale) for pair in expected]
    assert isinstance(found["train"].features["image"], datasets.Image)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["language"] == [language] and head["size_categories"] == ["n<1K"]
