"""SFT on pairs under rule books of their own: each prompt shows the pair's book; a pair that contradicts its book is left out."""

import datasets
import pytest

from lore.config.yaml_text import to_yaml
from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.engines.config import ModelSection
from lore.engines.loading import load_processor
from lore.rubric.rubric import load_rubric, parse_rubric
from lore.support.untrusted_json import parse_json
from lore.train.sft.sft import rows_of_a_book

BOOKS = (None, "books/strict.yaml")


@pytest.fixture
def data(tmp_path):
    """The data section for 16 pairs: eight under a small rubric, eight under a stricter book; the last is labeled wrongly."""
    raw = load_rubric("shop").model_dump(exclude_defaults=True)
    raw["rules"] = [rule | {"examples": []} for rule in raw["rules"] if rule["id"] in ("category-same", "colour-family")]
    raw["dimensions"] = [dimension for dimension in raw["dimensions"] if dimension["id"] in ("category", "colour")]
    (tmp_path / "pairs" / "books").mkdir(parents=True)
    (tmp_path / "small.yaml").write_text(to_yaml(parse_rubric(raw).model_dump(exclude_defaults=True)))
    raw["rules"][1]["tier"] = "L2"
    (tmp_path / "pairs" / "books" / "strict.yaml").write_text(to_yaml(parse_rubric(raw).model_dump(exclude_defaults=True)))
    with PairWriter(tmp_path / "pairs" / "train.parquet") as writer:
        for number in range(16):
            tier, book = (("L3", None), ("L2", BOOKS[1]))[number % 2]
            tier = "L3" if number == 15 else tier
            why = f"category: mug | mug (title) | category-same L4; colour: red | pink (title) | colour-family {tier}"
            title = f"pink mug {number}"
            told = {"label": tier, "rationale": why, "rubric": book}
            writer.write(Pair(pair_id=f"p{number}", query="red mug", title=title, split="train", **told))
    return {"path": str(tmp_path / "pairs"), "rubric": str(tmp_path / "small.yaml")}


def test_each_pair_is_trained_under_its_own_book(train, data, tiny):
    prompt = {"detail": "full", "max_prompt_tokens": 1000}
    run = train("books", model="text", lora={}, data=data, prompt=prompt, steps=2, batch_size=4)
    rows = datasets.Dataset.from_file(str(run / "data" / "rows.arrow"))
    assert rows_of_a_book(run, 4) == rows_of_a_book(run, 2) == 4  # a resumed run keeps its order
    tokenizer = load_processor(ModelSection(name=str(tiny.text)))
    assert len(rows) == 15 and set(rows["book"][:]) == set(BOOKS)
    for row in rows:
        text, tier = tokenizer.decode(row["input_ids"]), "L2" if row["book"] else "L3"
        assert f"- {tier} colour-family, colour: the dominant colour" in text
        assert f"colour-family {tier}</reason>" in text and f"<verdict>{tier}</verdict>" in text
    (rejected,) = (parse_json(line) for line in (run / "rejected.jsonl").read_bytes().splitlines())
    assert "p15" in rejected["field"]
    assert "gives colour-family the tier L3, and it is L2, in the pair's rule book" in rejected["found"]
