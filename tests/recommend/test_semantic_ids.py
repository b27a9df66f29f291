"""Stage semantic_ids from files to codes."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import codes_for_tests as shop
import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.linear_model import RidgeClassifier

from lore.config.stages import load_recipe
from lore.data.pair import ITEM_SCHEMA, Pair
from lore.data.parquet import PairWriter
from lore.recommend.codes import make_codes, read_codes, read_codes_table
from lore.recommend.codes_report import shared, usage
from lore.recommend.quantize import load_arrays
from lore.recommend.semantic_ids import open_item_coder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.train.common.trainer import refuse_sharding

ITEMS, SOLD = 160, 120
IDS = [f"i{row}" for row in range(ITEMS)]
SMALL = {"fusion": "{size: 96}", "train": "{steps: 40, batch_size: 80, lr: 5e-3, save_every: 20, log_every: 20}"}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    truth = shop.write_catalogue(folder / "items.parquet", ITEMS)
    shop.write_events(folder / "events.parquet", truth, SOLD, last=3)
    return folder, truth


@pytest.fixture(scope="module")
def trained(catalogue, tmp_path_factory):
    folder, truth = catalogue
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORE_RUNS", str(tmp_path_factory.mktemp("runs")))
        (folder / "codes.yaml").write_text(shop.recipe_text(folder, **SMALL))
        yield run_recipe(folder / "codes.yaml")


def accuracy(vectors, labels, fit, test) -> float:
    return RidgeClassifier().fit(vectors[fit], labels[fit]).score(vectors[test], labels[test])


def test_fused_vectors_carry_text_photo_and_behavior_and_cold_items_their_content(catalogue, trained):
    truth = catalogue[1]
    vectors = load_arrays(trained / "vectors.safetensors", "vectors")["vectors"]
    warm, cold = np.arange(1, SOLD), np.arange(SOLD, ITEMS)
    half = warm % 2 == 0
    for name, least, chance in (("kind", 0.8, 0.25), ("color", 0.85, 0.33), ("taste", 0.6, 0.25)):
        halves = [accuracy(vectors, truth[name], warm[one], warm[~one]) for one in (half, ~half)]
        assert np.mean(halves) > least > 1.7 * chance, name
    assert accuracy(vectors, truth["kind"], warm, cold) > 0.7 and accuracy(vectors, truth["color"], warm, cold) > 0.8
    codes = read_codes(trained.path, IDS)
    assert len(np.unique(codes.values, axis=0)) == ITEMS and codes.levels == 3
    report = json.loads((trained / "report.json").read_text())
    for name in ("nearest by fused vectors", "taken together in training"):
        assert report["neighbors"][name]["1"]["share"] > 2 * report["neighbors"][name]["1"]["shuffled"]
    assert report["collisions"]["after"] == 0 and len(report["gates"]["layers"]) == 2


def test_the_report_is_one_page_in_which_nothing_runs(trained):
    page = (trained / "report.html").read_text()
    assert "<script" not in page and "default-src 'none'" in page and "data:image/jpeg;base64," in page
    assert "http" not in page.replace("http-equiv", "")


def test_new_items_get_free_codes_and_old_ones_keep_theirs(catalogue, trained, tmp_path):
    folder, _ = catalogue
    shop.write_catalogue(tmp_path / "items.parquet", ITEMS + 30)
    (tmp_path / "more.yaml").write_text(shop.recipe_text(tmp_path, "more", events=False, base=str(trained.path)))
    more = run_recipe(tmp_path / "more.yaml")
    known, values, _, _ = read_codes_table(more.path)
    assert known[:ITEMS] == IDS and len(np.unique(values, axis=0)) == ITEMS + 30
    assert (values[:ITEMS] == read_codes(trained.path, IDS).values).all()
    truth = shop.traits(ITEMS + 30)
    vectors = load_arrays(more / "vectors.safetensors", "vectors")["vectors"]
    assert accuracy(vectors, truth["color"], np.arange(1, ITEMS), np.arange(ITEMS, ITEMS + 30)) > 0.7
    coder = open_item_coder(more.path)
    again = coder.vectors((item for item in load_recipe(tmp_path / "more.yaml").data.catalogue()), ITEMS + 30)
    assert np.allclose(again[ITEMS:], vectors[ITEMS:], atol=1e-6)


def test_keys_that_a_base_cannot_follow_are_refused(catalogue, trained, tmp_path, capsys):
    """Keys of the base may be repeated; other ones would count for nothing."""
    folder, _ = catalogue
    shop.write_catalogue(tmp_path / "items.parquet", ITEMS + 1)
    base = {"base": str(trained.path)}
    for name, wrong in {"fusion": "{size: 64}", "use": "[text]", "codes": "{levels: 4}", "text": "{size: 64}"}.items():
        (tmp_path / "r.yaml").write_text(shop.recipe_text(tmp_path, f"no_{name}", events=False, **base, **{name: wrong}))
        with pytest.raises(LoreError, match=f"{name}: this recipe has other values than .*\n.*repeat those of the base"):
            run_recipe(tmp_path / "r.yaml")
    capsys.readouterr()
    (tmp_path / "r.yaml").write_text(shop.recipe_text(tmp_path, "repeated", events=False, **base, **SMALL))
    assert len(read_codes_table(run_recipe(tmp_path / "r.yaml").path)[0]) == ITEMS + 1
    assert "the section train is not read" in capsys.readouterr().out


def test_new_items_have_their_photo_vectors_in_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LORE_RUNS", str(tmp_path / "runs"))
    known = np.random.default_rng(0).normal(size=(41, 8)).astype(np.float32)
    known[40] = known[3]
    options = {"use": "[photo]", "fusion": "{kind: concat}", "codes": "{levels: 2, size: 8}"}
    for name, count, more in (("old", 40, {}), ("new", 41, {"base": str(tmp_path / "runs/old")})):
        shop.write_catalogue(tmp_path / "items.parquet", count)
        np.savez(tmp_path / f"{name}.npz", item_id=[f"i{row}" for row in range(count)], embedding=known[:count])
        photo = f"{{embeddings: {tmp_path / f'{name}.npz'}}}"
        (tmp_path / "r.yaml").write_text(shop.recipe_text(tmp_path, name, events=False, photo=photo, **options, **more))
        run = run_recipe(tmp_path / "r.yaml")
    vectors = load_arrays(run / "vectors.safetensors", "vectors")["vectors"]
    np.testing.assert_allclose(vectors[40], vectors[3], atol=1e-5)


@pytest.mark.slow
def test_held_out_events_move_nothing_and_the_same_run_gives_the_same_codes(catalogue, trained, tmp_path, monkeypatch):
    folder, truth = catalogue
    monkeypatch.setenv("LORE_RUNS", str(tmp_path / "runs"))
    (tmp_path / "items.parquet").write_bytes((folder / "items.parquet").read_bytes())
    shop.write_events(tmp_path / "events.parquet", truth, SOLD, last=5)  # other events after the training
    (tmp_path / "codes.yaml").write_text(shop.recipe_text(tmp_path, **SMALL))
    other = run_recipe(tmp_path / "codes.yaml")
    for name in ("codes.parquet", "vectors.safetensors", "codebooks.safetensors"):
        assert (other / name).read_bytes() == (trained / name).read_bytes(), name


# Kills its own process in the middle of writing the second checkpoint.
DIE_WHILE_SAVING = """
import os, signal, sys, torch
save = torch.save
def half(obj, path, *args, **kwargs):
    save(obj, path, *args, **kwargs)
    if "checkpoint-40" in str(path) and str(path).endswith("optimizer.pt"):
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
from lore.run.runner import run_command
sys.exit(run_command([sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_codes_of_one_that_was_not(catalogue, trained, tmp_path, monkeypatch):
    folder, _ = catalogue
    monkeypatch.setenv("LORE_RUNS", str(tmp_path))
    path = folder / "codes.yaml"
    command = [sys.executable, "-c", DIE_WHILE_SAVING, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert (tmp_path / "codes" / "checkpoints" / "checkpoint-20").is_dir() and not (tmp_path / "codes" / "codes.parquet").exists()
    again = run_recipe(path)
    for name in ("metrics.jsonl", "codes.parquet", "vectors.safetensors", "report.json"):
        assert (again / name).read_bytes() == (trained / name).read_bytes(), name


@pytest.mark.slow
def test_controls_read_only_what_they_name(catalogue, tmp_path, monkeypatch):
    folder, truth = catalogue
    monkeypatch.setenv("LORE_RUNS", str(tmp_path))
    fast = {"fusion": "{kind: concat}", "codes": "{levels: 2, size: 64}"}
    found = {}
    for use in ("text", "photo"):
        path = folder / f"{use}.yaml"
        path.write_text(shop.recipe_text(folder, use, events=False, use=f"[{use}]", **fast))
        one = run_recipe(path)
        vectors = load_arrays(one / "vectors.safetensors", "vectors")["vectors"]
        rows = np.arange(1, ITEMS)
        found[use] = [accuracy(vectors, truth[name], rows[:100], rows[100:]) for name in ("kind", "color")]
        assert read_codes(one.path, IDS).levels == 2
    assert found["text"][0] > 0.95 > 0.6 > found["text"][1] and found["photo"][1] > 0.95 > 0.6 > found["photo"][0]


def test_usage_and_shared_prefixes_are_those_of_a_count_by_hand():
    codes = make_codes(np.array([[0, 1], [0, 1], [0, 2], [3, 3]]), 4)
    assert usage(codes) == [{"used": 2, "perplexity": 1.75}, {"used": 3, "perplexity": 2.83}]
    pairs = np.array([0, 0, 0, 3]), np.array([1, 2, 3, 2])
    assert shared(codes, pairs, 1) == 0.5 and shared(codes, pairs, 2) == 0.25


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"use": "[]"}, "one or more of text, photo, structure"),
        ({"fusion": "{size: 10, heads: 4}"}, "a size that is a multiple of heads"),
        ({"photo": "{encoder: a, embeddings: b}"}, "one of them"),
        ({"text": "{fields: [brand]}"}, "title and other fields"),
        ({"codes": "{levels: 1}"}, "2"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_it_starts(section, said, tmp_path):
    (tmp_path / "r.yaml").write_text(shop.recipe_text(tmp_path, **section))
    with pytest.raises(LoreError, match=said):
        load_recipe(tmp_path / "r.yaml")


def test_sharded_weights_are_refused():
    trainer = SimpleNamespace(is_deepspeed_enabled=False, is_fsdp_enabled=True)
    with pytest.raises(LoreError, match="an item encoder is small enough to be whole(?s:.*)ddp.yaml"):
        refuse_sharding(trainer, "an item encoder")
    trainer.is_fsdp_enabled = False
    refuse_sharding(trainer, "an item encoder")


@pytest.mark.parametrize("kind", ["dynamic", "concat"])
def test_a_catalogue_without_what_use_names_gets_no_codes(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("LORE_RUNS", str(tmp_path / "runs"))
    with PairWriter(tmp_path / "items.parquet", schema=ITEM_SCHEMA, metadata={"lore.source": "test"}) as writer:
        writer.write(Pair(pair_id="", item_id="i1", query="", title="mug"))
    (tmp_path / "codes.yaml").write_text(shop.recipe_text(tmp_path, events=False, use="[photo]", fusion=f"{{kind: {kind}}}"))
    with pytest.raises(LoreError, match="has nothing of what `use` names"):
        run_recipe(tmp_path / "codes.yaml")
