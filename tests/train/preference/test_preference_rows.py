"""What becomes a preference: comparing samples with labels, raters' tables, and the exact rows of fine-tuning."""

import json

import numpy as np
import pyarrow as pa
import pytest

from lore.codec.judgement import FormatFailure, parse
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair, pair_digest
from lore.data.parquet import read_pairs
from lore.data.rejected_rows import Rejection
from lore.engines.chat import turn_end
from lore.engines.config import ModelSection
from lore.engines.loading import load_processor
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError
from lore.train.common.arrow_rows import IGNORE
from lore.train.judge.rows import sft_row
from lore.train.pool.config import PoolSection
from lore.train.preference.batch import apart, kto_weights
from lore.train.preference.config import PreferencesSection
from lore.train.preference.rows import Preference, Renderer, from_pool, from_table

RUBRIC = load_rubric("shop")
FMT = PromptFormat("reason_first", "name", max_prompt_tokens=512)


def answer(tier: str, why: str = "because") -> str:
    return f"<reason>{why}</reason>\n<verdict>{tier}</verdict>"


def sample(text: str, truncated: bool = False) -> dict:
    read = parse(text, RUBRIC, FMT)
    return {"text": text, "tokens": 9, "tier": None if isinstance(read, FormatFailure) else read.tier, "truncated": truncated}


def pool_of(*texts: list[str], label: str = "L4") -> tuple[pa.Table, list[Pair]]:
    """A pool of one row for each list of samples, and the pairs."""
    rows, pairs = [], []
    for index, drawn in enumerate(texts):
        samples = [sample(text, text == "cut off") for text in drawn]
        rate = sum(item["tier"] == label for item in samples) / len(samples)
        rows.append({"pair_id": f"p{index}", "label": label, "pass_rate": rate, "samples": samples})
        pairs.append(Pair(pair_id=f"p{index}", query="lamp", title="a lamp", label=label, rationale="gold reason"))
    return pa.Table.from_pylist(rows), pairs


def made(table, pairs, stage="dpo", **options) -> list[Preference]:
    section = PreferencesSection(tables=["x"], **options)
    return from_pool(table, pairs, stage, section, RUBRIC, FMT, 0)


def test_a_right_sample_is_preferred_to_a_wrong_one_and_never_the_other_way():
    drawn = [answer("L4", "a"), answer("L4", "b"), answer("L1"), answer("L2"), "no answer"]
    table, pairs = pool_of(drawn, [answer("L4")] * 3, [answer("L1"), answer("L2")])
    found = made(table, pairs, per_prompt=9)
    assert {preference.pair_id for preference in found} == {"p0"}
    assert len(found) == len({tuple(preference.answers.values()) for preference in found}) == 6
    for preference in found:
        assert parse(preference.answers["chosen"], RUBRIC, FMT).tier == "L4"
        assert preference.answers["rejected"] in (answer("L1"), answer("L2"), "no answer")
    assert len(made(table, pairs, per_prompt=2)) == 2
    assert "no answer" not in {p.answers["rejected"] for p in made(table, pairs, per_prompt=9, failures=False)}


def test_equal_answers_and_unreadable_chosen_ones_can_never_become_a_pair():
    table, pairs = pool_of([answer("L4"), answer("L4") + "\n", "", answer("L4")], ["junk", "", answer("L2")])
    assert made(table, pairs, per_prompt=9) == []


def test_gold_answers_stand_in_where_every_sample_is_wrong():
    table, pairs = pool_of([answer("L1"), answer("L2")], [answer("L4"), answer("L1")])
    assert {preference.pair_id for preference in made(table, pairs)} == {"p1"}
    found = made(table, pairs, gold=True)
    gold = [preference for preference in found if preference.pair_id == "p0"]
    assert gold and all("gold reason" in p.answers["chosen"] and p.source == "gold" for p in gold)
    pairs[0].rationale = None
    assert {preference.pair_id for preference in made(table, pairs, gold=True)} == {"p1"}


def test_the_farthest_wrong_tier_comes_first_where_the_recipe_says_so():
    table, pairs = pool_of([answer("L4"), answer("L3"), answer("L3", "b"), answer("L3", "c"), answer("L1")])
    assert [p.answers["rejected"] for p in made(table, pairs, per_prompt=1, wrong="farthest")] == [answer("L1")]


def test_where_the_limit_cuts_the_hardest_are_kept():
    table, pairs = pool_of(*([answer("L4", str(k)) for k in range(right)] + [answer("L1")] for right in (9, 1, 4)))
    assert [p.pair_id for p in made(table, pairs, per_prompt=1, limit=2)] == ["p1", "p2"]


def test_a_row_that_comes_twice_gives_another_preference():
    table, pairs = pool_of([answer("L4", "a"), answer("L4", "b"), answer("L1"), answer("L2")])
    twice, both = pa.concat_tables([table, table]), [*pairs, *pairs]
    found = made(twice, both, per_prompt=2)
    assert len(found) == 4 and len({tuple(p.answers.values()) for p in found}) >= 3


def test_single_answers_are_good_where_they_give_the_label():
    table, pairs = pool_of([answer("L4", "a"), answer("L4", "b"), answer("L1"), "cut off"], [answer("L4")], [answer("L2")])
    found = made(table, pairs, "kto", per_prompt=9)
    verdicts = {(p.pair_id, p.answers["completion"]): p.good for p in found}
    assert verdicts == {
        ("p0", answer("L4", "a")): True,
        ("p0", answer("L4", "b")): True,
        ("p0", answer("L1")): False,
        ("p0", "cut off"): False,
        ("p1", answer("L4")): True,
        ("p2", answer("L2")): False,
    }


def test_a_curriculum_of_single_answers_keeps_those_of_a_pair_apart():
    drawn = [[answer("L4", "a"), answer("L4", "b"), answer("L1"), answer("L2")]] * 300
    table, pairs = pool_of(*drawn)
    found = made(table, pairs, "kto", per_prompt=2, pool=PoolSection(path="x", order="easy_to_hard"))
    numbers = [int(preference.pair_id[1:]) for preference in found]
    assert len(numbers) == 1200 and all(len({*numbers[start : start + 32]}) == 32 for start in range(0, 1024, 32))
    goods = np.array([preference.good for preference in found]).reshape(-1, 8)
    assert (goods.sum(axis=1) == 4).all()
    assert max(numbers[:1024]) == 255 and min(numbers[1024:]) == 256  # and the order of the pairs stays


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_rows_hold_the_prompt_and_the_answer_of_fine_tuning(tiny, kind):
    processor = load_processor(ModelSection(name=str(getattr(tiny, kind))))
    renderer = Renderer(RUBRIC, FMT, processor, 2048)
    end = turn_end(processor)
    for pair in read_pairs(tiny.pairs, split="train", limit=12):
        tuned = sft_row(pair, RUBRIC, FMT, processor)
        right, wrong = answer(pair.label), answer("L1" if pair.label != "L1" else "L2")
        row = renderer.row(pair, Preference(pair.pair_id, {"chosen": right, "rejected": wrong}, "pool"))
        if kind == "vision":
            assert row["prompt"] == tuned["prompt"] and row["images"] == tuned["images"]
            assert row["chosen"] == right + end
            continue
        prompt = [token for token, label in zip(tuned["input_ids"], tuned["labels"], strict=True) if label == IGNORE]
        assert row["prompt_ids"] == prompt
        assert row["chosen_ids"] == processor(right + end, add_special_tokens=False)["input_ids"]
        assert row["length"] == len(prompt) + max(row["chosen_tokens"], row["rejected_tokens"])


def test_no_end_is_learned_behind_an_answer_that_was_cut_off(tiny):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    pair = next(read_pairs(tiny.pairs, split="train"))
    preference = Preference(pair.pair_id, {"chosen": answer("L4"), "rejected": "and so"}, "pool", cut=frozenset({"rejected"}))
    row = Renderer(RUBRIC, FMT, processor, 2048).row(pair, preference)
    assert row["rejected"] == "and so" and row["chosen"].endswith(turn_end(processor))


@pytest.mark.parametrize("text", ["<image> L4", "a<|im_end|>b"])
def test_control_tokens_and_rows_that_are_too_long_are_no_preference(tiny, text):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    pair = next(read_pairs(tiny.pairs, split="train"))
    with pytest.raises(LoreError, match="control token"):
        Renderer(RUBRIC, FMT, processor, 2048).row(pair, Preference("a", {"chosen": answer("L4"), "rejected": text}, "x"))
    with pytest.raises(LoreError, match="train.max_tokens is 20"):
        Renderer(RUBRIC, FMT, processor, 20).row(pair, Preference("a", {"chosen": answer("L4"), "rejected": "b"}, "x"))


def read_table(tmp_path, rows, stage="dpo", name="t.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = list(from_table(str(path), stage, {"a", "b"}, RUBRIC, FMT))
    return [i for i in items if not isinstance(i, Rejection)], [(i.row, i.reason) for i in items if isinstance(i, Rejection)]


def test_a_raters_table_gives_preferences_and_says_what_is_wrong_with_rows(tmp_path):
    right, wrong = answer("L4"), answer("L1")
    rows = [
        {"pair_id": "a", "chosen": right, "rejected": wrong, "source": "anna"},
        {"pair_id": "a", "chosen": right, "rejected": wrong},
        {"pair_id": "a", "chosen": wrong, "rejected": right},
        {"pair_id": "x", "chosen": right, "rejected": wrong},
        {"pair_id": "b", "chosen": "L4 of course", "rejected": wrong},
        {"pair_id": "b", "chosen": right, "rejected": right + " "},
        {"pair_id": "b", "chosen": right, "rejected": None},
        {"pair_id": "b", "chosen": right, "rejected": "nonsense"},
    ]
    found, rejected = read_table(tmp_path, rows)
    assert [(number, p.source, p.answers["rejected"]) for number, p in found] == [(1, "anna", wrong), (8, "t.jsonl", "nonsense")]
    assert rejected == [
        (2, "duplicate"),
        (3, "contradiction"),
        (4, "unknown_pair"),
        (5, "no_verdict"),
        (6, "equal_answers"),
        (7, "empty"),
    ]


def test_single_answers_of_raters_are_checked_too(tmp_path):
    rows = [
        {"pair_id": "a", "completion": answer("L4"), "good": True},
        {"pair_id": "a", "completion": answer("L4"), "good": False},
        {"pair_id": "b", "completion": "nonsense", "good": "no"},
        {"pair_id": "b", "completion": "nonsense", "good": 1},
        {"pair_id": "b", "completion": answer("L2"), "good": "perhaps"},
    ]
    found, rejected = read_table(tmp_path, rows, "kto")
    assert [(number, p.good) for number, p in found] == [(1, True), (3, False)]
    assert rejected == [(2, "contradiction"), (4, "no_verdict"), (5, "field_type")]


def test_csv_tables_and_missing_files_and_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f'pair_id,chosen,rejected\na,"{answer("L4")}",bad\n')
    ((number, found),) = from_table(str(path), "dpo", {"a"}, RUBRIC, FMT)
    assert number == 1 and found.answers == {"chosen": answer("L4"), "rejected": "bad"}
    one = pair_digest("lamp", "1")  # the id of the pair before generated ids began with a letter
    path.with_name("OLD.CSV").write_text(f'pair_id;chosen;rejected\n{one};"{answer("L4")}";bad\n1,2E+15;"{answer("L4")}";bad\n')
    (_, found), refused = from_table(str(path.with_name("OLD.CSV")), "dpo", {f"p{one}"}, RUBRIC, FMT)
    assert found.pair_id == f"p{one}" and "such as Excel" in refused.expected
    with pytest.raises(LoreError, match="preferences.tables.*does not exist"):
        list(from_table(str(tmp_path / "none.csv"), "dpo", set(), RUBRIC, FMT))
    with pytest.raises(LoreError, match="column 'good' is missing"):
        list(from_table(str(path), "kto", {"a"}, RUBRIC, FMT))


def test_neighbours_of_a_pass_are_of_different_pairs():
    for ids in ("aabbcc", "aaabcd", "aabcdeffg", "ab", "aabb", "abcdefa"):
        found = [row["pair_id"] for row in apart([{"pair_id": name, "n": n} for n, name in enumerate(ids)])]
        assert sorted(found) == sorted(ids)
        assert all(one != other for one, other in zip(found, [found[-1], *found], strict=False)), found


def test_good_and_bad_answers_weigh_the_same_in_all():
    class Recipe:
        desirable_weight = undesirable_weight = None

    assert kto_weights(Recipe, [True] * 10 + [False] * 40) == (4.0, 1.0)
    assert kto_weights(Recipe, [True] * 40 + [False] * 10) == (1.0, 4.0)
    Recipe.undesirable_weight = 2.0
    assert kto_weights(Recipe, [True] * 10 + [False] * 40) == (8.0, 2.0)
    with pytest.raises(LoreError, match="0 good and 3 bad"):
        kto_weights(Recipe, [False] * 3)
