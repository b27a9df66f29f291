"""The stage harden: what it changes and what stays, that its rows are training rows with a true rationale, and that it goes on."""

import pytest
import yaml
from synthesis_for_tests import make_shop, write_recipe

from lore.codec.prompt import PromptFormat
from lore.config.stages import load_recipe
from lore.config.yaml_text import RecipeError
from lore.data.parquet import PairWriter, read_metadata, read_pairs
from lore.data_synth.perturb.config import HardenRecipe
from lore.data_synth.perturb.harden import MARK, Hardener, counts
from lore.data_synth.perturb.perturb import PERTURBATIONS, Perturber
from lore.data_synth.perturb.wordings import load_wordings
from lore.data_synth.shop.world import World
from lore.rubric.rubric import load_rubric, rubric_metadata
from lore.run.runner import run_recipe
from lore.support.errors import LoreError

SHOP = load_rubric("shop")
INJECTIONS = [name for name, perturbation in PERTURBATIONS.items() if perturbation.kind == "injection"]


def recipe_file(folder, pairs, run="hard", **more):
    body = {"stage": "harden", "run": run, "data": {"path": str(pairs), "rubric": "shop"}} | more
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    return path


@pytest.fixture
def shop(tmp_path):
    """A folder with 120 training, 20 dev and 8 pairs without a split."""
    world, folder = World(5), tmp_path / "pairs"
    for split, count in (("train", 120), ("dev", 20)):
        with PairWriter(folder / f"{split}.parquet") as writer:
            for pair in world.pairs(split, count):
                writer.write(pair)
    with PairWriter(folder / "more.parquet") as writer:
        for pair in world.pairs("train", 8, start=400):
            pair.split = None
            writer.write(pair)
    return folder


def by_id(path):
    return {pair.pair_id: pair for pair in read_pairs(path)}


def mark_of(pair):
    return [name.removeprefix(MARK) for name in pair.slices if name.startswith(MARK)]


def test_a_share_of_the_training_pairs_is_perturbed_and_nothing_else(shop, runs, tmp_path):
    folder = run_recipe(recipe_file(tmp_path, shop))
    before, after = by_id(shop), by_id(folder / "pairs")
    assert list(by_id(folder / "pairs" / "dev.parquet").values()) == list(by_id(shop / "dev.parquet").values())
    assert before.keys() == after.keys()
    changed = {pair_id: mark_of(pair) for pair_id, pair in after.items() if mark_of(pair)}
    assert 0.35 * 128 < len(changed) < 0.65 * 128 and all(len(names) == 1 for names in changed.values())
    assert all(before[pair_id].split in ("train", None) for pair_id in changed)
    assert {names[0] for names in changed.values()} == set(INJECTIONS)
    for pair_id, pair in after.items():
        was = before[pair_id]
        for kept in ("label", "rationale", "demands", "rules", "mismatch", "split", "query", "attributes"):
            assert getattr(pair, kept) == getattr(was, kept)
        assert pair.slices[: len(was.slices)] == was.slices
        if pair_id not in changed:
            assert pair == was
        else:
            assert (pair.title, pair.description, pair.image) != (was.title, was.description, was.image)
    summary = folder.summary
    assert (summary["rows"], summary["train_rows"], summary["perturbed"]) == (148, 128, len(changed))
    assert sum(summary["by_perturbation"].values()) == len(changed)
    assert rubric_metadata("shop", SHOP).items() <= read_metadata(folder / "pairs" / "train.parquet").items()


def test_only_wordings_of_the_training_set_are_written(shop, runs, tmp_path):
    run_recipe(recipe_file(tmp_path, shop, share=1.0, perturbations=["order-in-title"]))
    sets = load_wordings("en").attacks
    trained, measured = ([order.format(best="L4", name="Perfect") for order in s.orders] for s in (sets.train, sets.test))
    titles = [pair.title for pair in read_pairs(runs / "hard" / "pairs", split="train")]
    assert all(sum(order in title for order in trained) >= 1 for title in titles)
    assert not any(order in title for order in measured for title in titles)


def test_copies_stand_beside_their_pair_under_an_id_of_their_own(shop, runs, tmp_path):
    folder = run_recipe(recipe_file(tmp_path, shop, copies=True, share=1.0, perturbations=["rule-quote", "order-in-photo"]))
    before, rows = by_id(shop), list(read_pairs(folder / "pairs"))
    assert len(rows) == 148 + 128 and len({pair.pair_id for pair in rows}) == len(rows)
    assert all(before[pair.pair_id] == pair for pair in rows if not mark_of(pair))
    for copy in (pair for pair in rows if mark_of(pair)):
        original = before[copy.pair_id.removesuffix(f"-{mark_of(copy)[0]}")]
        assert (copy.label, copy.rationale) == (original.label, original.rationale)
        assert mark_of(copy) == ["rule-quote"] or copy.image != original.image


def test_a_pair_to_which_nothing_applies_stays_and_is_not_counted():
    recipe = HardenRecipe.model_validate(
        {
            "stage": "harden",
            "run": "a",
            "data": {"path": "x", "rubric": "shop"},
            "share": 1.0,
            "perturbations": ["order-in-photo", "attribute-order"],
        }
    )
    hardener = Hardener(recipe, Perturber(SHOP, "en", "train"))
    pair = next(pair for pair in World(5).pairs("train", 100) if pair.image is None and len(pair.attributes) < 2)
    assert hardener.rows(pair) == [pair]


def test_hardened_pairs_are_training_rows_and_their_rationale_is_still_shown(shop, runs, tmp_path, tiny):
    """What a rationale finds in title or attributes stands in the row's prompt, whatever was added."""
    from lore.engines.config import ModelSection
    from lore.engines.loading import load_processor
    from lore.train.judge.rows import sft_row

    folder = run_recipe(recipe_file(tmp_path, shop, share=1.0))
    processor = load_processor(ModelSection(name=str(tiny.text)))
    seen = set()
    for pair in read_pairs(folder / "pairs", split="train"):
        row = sft_row(pair, SHOP, PromptFormat(detail="name", max_prompt_tokens=384), processor)
        prompt = processor.decode(row["input_ids"][: row["labels"].count(-100)])
        for demand in pair.demands:
            if demand.source in ("title", "attributes") and demand.dimension in ("category", "colour", "brand", "pattern"):
                assert demand.found.split(" with ")[0].split(" = ")[0] in prompt
        answer = processor.decode([token for token in row["labels"] if token != -100])
        assert f"<verdict>{pair.label}</verdict>" in answer and pair.rationale in answer
        seen.update(mark_of(pair))
    assert seen == set(INJECTIONS)


def test_it_runs_on_what_synthesize_writes(runs, tmp_path):
    shop = make_shop(tmp_path / "shop", 40)
    run_recipe(write_recipe(tmp_path, "traces", shop))
    folder = run_recipe(recipe_file(tmp_path, runs / "traces" / "pairs", share=1.0))
    before, after = by_id(runs / "traces" / "pairs"), by_id(folder / "pairs")
    assert before.keys() == after.keys() and all(pair.rationale == before[key].rationale for key, pair in after.items())
    assert all(pair.rationale and mark_of(pair) for pair in after.values())


def test_a_stopped_run_goes_on_and_keeps_whole_files(shop, runs, tmp_path, monkeypatch):
    whole = run_recipe(recipe_file(tmp_path, shop, run="whole"))
    recipe, rows, calls = recipe_file(tmp_path, shop), Hardener.rows, []

    def dies(self, pair):
        calls.append(pair)
        if len(calls) == 50:
            raise KeyboardInterrupt
        return rows(self, pair)

    monkeypatch.setattr(Hardener, "rows", dies)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe)
    assert not list((runs / "hard" / "pairs").glob("*"))  # nothing half written
    (runs / "hard" / "pairs" / "dev.parquet").write_bytes((whole / "pairs" / "dev.parquet").read_bytes())
    kept = (runs / "hard" / "pairs" / "dev.parquet").stat().st_mtime_ns
    monkeypatch.setattr(Hardener, "rows", rows)
    folder = run_recipe(recipe)
    assert (folder / "pairs" / "dev.parquet").stat().st_mtime_ns == kept
    assert by_id(folder / "pairs") == by_id(whole / "pairs")
    assert folder.summary | {"set": ""} == whole.summary | {"set": ""} and counts(folder / "pairs")["rows"] == 148


def test_data_without_a_training_pair_is_refused(shop, runs, tmp_path):
    with pytest.raises(LoreError, match="only pairs of split dev"):
        run_recipe(recipe_file(tmp_path, shop / "dev.parquet"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"perturbations": ["order-in-titel"]}, "order-in-title"),
        ({"perturbations": ["typo"]}, "would become wrong"),
        ({"perturbations": []}, "perturbations"),
        ({"share": 0.0}, "share"),
        ({"language": "fr"}, "language"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(tmp_path, more, says):
    with pytest.raises(RecipeError, match=says):
        load_recipe(recipe_file(tmp_path, tmp_path, **more))
