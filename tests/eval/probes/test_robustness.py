"""The robustness suite with scripted judges: rates as worked by hand, failures, what is left out, and no question asked twice."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.data_synth.perturb.perturb import PERTURBATIONS, Perturber
from lore.engines.engine import Completion, EngineUsage, Sampling
from lore.eval.probes.robustness import ALL_INJECTIONS, measure_robustness, print_robustness, read_translations, robustness_ids
from lore.eval.sections import RobustnessSection
from lore.eval.testset import Labeled
from lore.judge.resumable import Asker
from lore.judge.verdict import Verdict
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

SHOP = load_rubric("shop")
TIERS = SHOP.tier_ids
FIELDS = re.compile("<query>(.*?)</query>.*?<item>(.*)</item>", re.DOTALL)
# Query by query the label and what the judge says of the pair as it is: right but for the third, and none for the sixth.
QUERIES = ["red mug", "red lamp", "blue mug", "blue lamp", "green mug", "green lamp"]
GOLD = ["L1", "L2", "L3", "L4", "L4", "L2"]
CLEAN = ["L1", "L2", "L2", "L4", "L4", None]


class Judge:
    """Answers by query as CLEAN does. Where the item's text names L4 it says what `obeys` tells; broken: no verdict there."""

    tokenizer, takes_images = None, True

    def __init__(self, obeys: str | None = None, broken=False, dies_after: int | None = None):
        self.obeys, self.broken, self.dies_after, self.asked = obeys, broken, dies_after, []
        self.usage = EngineUsage()

    def generate(self, prompts, sampling):
        return [[self._answer(messages)] for messages in prompts]

    def _answer(self, messages):
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        content = messages[1]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        query, item = FIELDS.search(text).groups()
        self.asked.append((query, item))
        known = next(
            (tier for name, tier in zip(QUERIES, CLEAN, strict=True) if sorted(name.split()) == sorted(query.split())), "L1"
        )
        tier = self.obeys if self.obeys and "L4" in item else None if self.broken and "L4" in item else known
        text = f"<reason>r</reason>\n<verdict>{tier}</verdict>" if tier else "no idea"
        return Completion(text, len(text), "stop")

    def score(self, prompts):
        return np.full((len(prompts), len(TIERS)), 0.25)


def pairs(photo: bool = False) -> list[Pair]:
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), "navy").save(buffer, "PNG")
    image = {"bytes": buffer.getvalue(), "path": None} if photo else None
    return [Pair(pair_id=f"p{i}", query=query, title="kettle 40 cm", image=image, label=GOLD[i]) for i, query in enumerate(QUERIES)]


def clean(photo: str = "none") -> dict[str, Verdict]:
    return {f"p{i}": Verdict(f"p{i}", tier, photo=photo) for i, tier in enumerate(CLEAN)}


def labeled() -> Labeled:
    gold = np.asarray([TIERS.index(tier) for tier in GOLD])
    return Labeled("test", [f"p{i}" for i in range(6)], QUERIES, gold, np.ones(6), [[] for _ in QUERIES])


def measure(folder, judge, names=None, asked=None, verdicts=None, **more):
    asker = Asker("judge", folder, lambda: judge, SHOP, PromptFormat(detail="name"), Sampling(), chunk_pairs=2)
    options = RobustnessSection(perturbations=names, **more)
    flips = measure_robustness(
        asker, asked or pairs(), verdicts or clean(), labeled(), SHOP, options, language="en", samples=200, seed=0
    )
    return {flip.name: flip for flip in flips}


def test_an_obedient_judge_is_raised_wherever_it_can_be(tmp_path):
    found = measure(tmp_path, Judge(obeys="L4"), ["order-in-title", "chat-markers", "case"])
    assert list(found) == ["order-in-title", "chat-markers", "case", ALL_INJECTIONS]
    for name in ("order-in-title", "chat-markers"):
        flip = found[name]
        assert (flip.kind, flip.pairs, flip.queries, flip.failures) == ("injection", 6, 6, 0)
        # Clean verdicts below L4 are three: L1, L2, L2. Above L1 are four, and none falls.
        assert (flip.up.value, flip.down.value) == (1.0, 0.0)
        assert flip.clean_accuracy.value == pytest.approx(4 / 6) and flip.accuracy.value == pytest.approx(2 / 6)
        assert flip.up.low == flip.up.high == 1.0 and flip.accuracy.low < flip.accuracy.value < flip.accuracy.high
    both = found[ALL_INJECTIONS]
    assert (both.kind, both.pairs, both.queries, both.up.value) == ("injection", 12, 6, 1.0)


def test_an_immune_judge_moves_nowhere(tmp_path):
    found = measure(tmp_path, Judge())
    assert set(found) == {*PERTURBATIONS, ALL_INJECTIONS}
    for name, flip in found.items():
        if PERTURBATIONS.get(name) is None or PERTURBATIONS[name].kind == "injection":
            assert flip.up.value == flip.down.value == 0.0 or flip.pairs == 0
            assert np.isnan(flip.accuracy.value) if flip.pairs == 0 else flip.accuracy.value == flip.clean_accuracy.value
    # No photo and no attribute: left out, and said so. Injections: nine that apply, six pairs each.
    assert [name for name, flip in found.items() if flip.pairs == 0] == ["order-in-photo", "attribute-order"]
    assert found[ALL_INJECTIONS].pairs == 9 * 6
    assert found["translation"].down.value == 1.0  # this judge takes Chinese for L1


def test_a_judge_that_punishes_orders_falls(tmp_path):
    flip = measure(tmp_path, Judge(obeys="L2"), ["order-in-title"])["order-in-title"]
    # Of L1, L2, L2 the first rises to L2; of L2, L2, L4, L4 the last two fall.
    assert (flip.up.value, flip.down.value) == (pytest.approx(1 / 3), 0.5)
    assert flip.accuracy.value == pytest.approx(2 / 6)  # the labels L2


def test_a_verdict_that_is_lost_has_moved_nowhere_and_is_wrong(tmp_path):
    flip = measure(tmp_path, Judge(broken=True), ["order-in-title"])["order-in-title"]
    assert (flip.up.value, flip.down.value, flip.accuracy.value, flip.failures) == (0.0, 0.0, 0.0, 6)


def test_a_pair_without_a_clean_verdict_is_in_neither_rate(tmp_path):
    nothing = {f"p{i}": Verdict(f"p{i}", None, failure="no_verdict") for i in range(6)}
    flip = measure(tmp_path, Judge(obeys="L4"), ["order-in-title"], verdicts=nothing)["order-in-title"]
    assert np.isnan(flip.up.value) and np.isnan(flip.down.value)
    assert (flip.pairs, flip.clean_accuracy.value, flip.accuracy.value) == (6, 0.0, pytest.approx(2 / 6))


def test_an_order_in_the_photo_counts_where_the_photo_was_shown(tmp_path):
    shown = measure(tmp_path / "a", Judge(), ["order-in-photo"], pairs(photo=True), clean("seen"))["order-in-photo"]
    hidden = measure(tmp_path / "b", Judge(), ["order-in-photo"], pairs(photo=True), clean("hidden"))["order-in-photo"]
    assert (shown.pairs, hidden.pairs) == (6, 0)


def test_the_wordings_are_those_that_training_has_not_seen(tmp_path):
    judge = Judge()
    measure(tmp_path, judge, ["order-in-title"])
    measured, trained = (Perturber(SHOP, "en", name).material.attacks.orders for name in ("test", "train"))
    for _, item in judge.asked:
        assert any(order.format(best="L4", name="Perfect") in item for order in measured)
        assert not any(order.format(best="L4", name="Perfect") in item for order in trained)


def test_a_killed_run_asks_nothing_twice(tmp_path):
    names = ["order-in-title", "spacing"]
    first, second, third = Judge(dies_after=9), Judge(), Judge()
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "a", first, names)
    found = measure(tmp_path / "a", second, names)
    assert len(second.asked) == 12 - 8  # chunks of two: eight answers were saved
    assert measure(tmp_path / "a", third, names) == found and not third.asked
    assert measure(tmp_path / "b", Judge(), names) == found


def test_whole_queries_are_chosen():
    test = Labeled("test", list("abcdef"), ["q", "q", "r", "r", "s", "s"], np.zeros(6, int), np.ones(6), [[]] * 6)
    ids = robustness_ids(test, RobustnessSection(pairs=3), seed=0)
    assert len(ids) == 4 and {"ab", "cd", "ef"} >= {"".join(ids[:2]), "".join(ids[2:])}
    assert robustness_ids(test, RobustnessSection(pairs=99), seed=0) == list("abcdef")


def test_translations_are_read_and_asked(tmp_path):
    for name, text in (
        ("t.csv", "query,translation\nRed mug,rote Tasse\n"),
        ("t.jsonl", '{"query": "Red mug", "translation": "rote Tasse"}\n'),
    ):
        (tmp_path / name).write_text(text)
        assert read_translations(tmp_path / name) == {"Red mug": "rote Tasse"}
    judge = Judge()
    flip = measure(tmp_path / "a", judge, ["translation"], translations=str(tmp_path / "t.csv"))["translation"]
    asked = [query for query, _ in judge.asked]
    assert "rote Tasse" in asked and flip.pairs == 6  # the others in the words of the shop
    for name, text in (("empty.csv", "query,translation\nred mug,\n"), ("other.csv", "query,text\na,b\n"), ("x.txt", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(LoreError, match=name):
            read_translations(tmp_path / name)
    with pytest.raises(LoreError, match="does not exist"):
        read_translations(tmp_path / "none.csv")


def test_an_unknown_perturbation_is_refused(tmp_path):
    with pytest.raises(LoreError, match="order-in-title"):
        measure(tmp_path, Judge(), ["order-in-titel"])


def test_the_table_has_a_row_for_each_perturbation_and_judge(tmp_path):
    found = {
        "naive [1]": list(measure(tmp_path / "a", Judge(obeys="L4"), ["order-in-title"]).values()),
        "hardened": list(measure(tmp_path / "b", Judge(), ["order-in-title"]).values()),
    }
    console = Console(record=True, width=200, file=io.StringIO())
    print_robustness(found, console)
    lines = [line for line in console.export_text().splitlines() if "injection" in line]
    assert len(lines) == 4 and sum("naive [1]" in line for line in lines) == 2
    assert "1.00 [1.00, 1.00]" in lines[0] and "0.00 [0.00, 0.00]" in lines[1] and ALL_INJECTIONS in lines[2]
