"""Stage recommender on real files: what it trains, what a folder of it gives back, and resume after SIGKILL."""

import json
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT

from lore.config.stages import load_recipe
from lore.config.yaml_text import RecipeError
from lore.recommend.codes import make_codes
from lore.recommend.model import IGNORE, ITEMS, MASK, PAD, SequenceModel, _before_hidden, open_recommender
from lore.recommend.recommender_recipe import MasksSection, NetworkSection
from lore.recommend.tables import CLOCK, EVENT_SCHEMA, read_histories
from lore.recommend.training import Rows, training_rows
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError

GROUPS, MEMBERS = 8, 4
ITEMS_OF_SHOP = [f"i{group}{member}" for group in range(GROUPS) for member in range(MEMBERS)]
COLD = "i30"
"""Nobody takes it in training."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """Shoppers go from a group of items to the next one, and take any of its members; codes say the group first."""
    folder, rng, rows = tmp_path_factory.mktemp("shop"), np.random.default_rng(0), []
    for user in range(120):
        group, seen = int(rng.integers(GROUPS)), 0
        for seen in range(int(rng.integers(5, 9))):
            item = f"i{(group + seen) % GROUPS}{rng.integers(MEMBERS)}"
            if item != COLD:
                rows.append({"user_id": f"u{user}", "item_id": item, "time": float(seen)})
    table = pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)
    pq.write_table(table.replace_schema_metadata({CLOCK: "order"}), folder / "events.parquet")
    codes = {item: [f"<a_{item[1]}>", f"<b_{item[2]}>"] for item in ITEMS_OF_SHOP}
    (folder / "codes.json").write_text(json.dumps(codes))
    pq.write_table(pa.table({"item_id": ITEMS_OF_SHOP, "title": ITEMS_OF_SHOP}), folder / "items.parquet")
    return folder


@pytest.fixture
def recipe(shop, runs, tmp_path):
    def write(run: str, **sections) -> Path:
        train = {"steps": 6, "batch_size": 16, "lr": 0.01, "log_every": 1, "save_every": 2} | sections.pop("train", {})
        values = {"stage": "recommender", "run": run, "train": train, "network": {"hidden": 16}} | sections
        values["data"] = {"events": str(shop / "events.parquet"), "items": str(shop / "items.parquet")}
        path = tmp_path / f"{run.replace('/', '-')}.yaml"
        path.write_text(yaml.safe_dump({"lore": 1} | values))
        return path

    return write


def test_codes_place_an_item_that_nobody_took_and_a_new_one(recipe, shop):
    steps = {"steps": 80, "batch_size": 32, "save_every": 0, "log_every": 40, "lr": 0.01}
    network = {"hidden": 32, "dropout": 0, "evidence": 5, "prefix_evidence": 5, "spread": 0.2, "popularity": False}
    masks = {"random": 1, "last": 1, "span": 1, "tail": 1, "regions": 1}
    folder = run_recipe(recipe("pretrain", train=steps, network=network, codes={"paths": [str(shop / "codes.json")]}, masks=masks))
    last = {"random": 0, "last": 1, "rows": "events"}
    tuned = recipe("finetune", model={"name": str(folder.path)}, network={}, train=steps, masks=last)
    model = open_recommender(run_recipe(tuned).path)
    assert model.item_ids == ITEMS_OF_SHOP and model.name == "Q-BERT4Rec"
    row = {item: number for number, item in enumerate(model.item_ids)}
    histories = [np.array([row[f"i0{one}"], row[f"i1{two}"], row[f"i2{two}"]]) for one in range(MEMBERS) for two in range(MEMBERS)]
    scores = model.scores(histories)
    ranks = (scores > scores[:, [row[COLD]]]).sum(axis=1)
    assert ranks.mean() < 10  # 15.5 by chance
    grown = model.with_items(["new", "stranger"], [make_codes(np.array([[3, 9], [99, 0]]), 100)])
    with_new = grown.scores(histories)
    assert grown.item_ids[-2:] == ["new", "stranger"]
    assert (scores > with_new[:, [-2]]).sum(axis=1).mean() < 10
    assert np.ptp(with_new[:, -1]) < 1e-5  # nothing but its popularity, which is none
    np.testing.assert_allclose(with_new[:, :-2], scores, rtol=1e-5, atol=1e-5)
    with pytest.raises(LoreError, match="reads 1 sets of codes, and the 1 new items come with 0"):
        model.with_items(["new"], [])


@pytest.mark.parametrize("kind", ["bert4rec", "sasrec"])
def test_a_folder_gives_the_trained_scores_back(recipe, kind, shop):
    network = {"hidden": 16, "kind": kind, "history": 4}
    folder = run_recipe(recipe(kind, network=network, codes={"paths": [str(shop / "codes.json")]}))
    model = open_recommender(folder / "model")
    alone = model.scores([np.array([3])])
    both = model.scores([np.array([3]), np.arange(12)])  # padding, and more items than the network reads
    np.testing.assert_allclose(alone[0], both[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.scores([np.arange(12)[-4:]])[0], both[1], rtol=1e-4, atol=1e-5)
    assert folder.summary["steps"] == 6


def test_a_causal_model_never_reads_what_it_predicts_and_a_bidirectional_one_never_what_is_hidden():
    torch.manual_seed(0)
    counts = np.ones(10, dtype=np.int64)
    tokens = torch.tensor([[ITEMS + 1, ITEMS + 2, ITEMS + 3, PAD]])
    causal = SequenceModel(NetworkSection(kind="sasrec", hidden=16), [], counts).eval()
    before = causal(tokens)["states"]
    after = causal(tokens.masked_fill(tokens == ITEMS + 3, ITEMS + 9))["states"]
    assert torch.allclose(before[0, :2], after[0, :2], atol=1e-6) and not torch.allclose(before[0, 2], after[0, 2])
    both = SequenceModel(NetworkSection(hidden=16), [], counts).eval()
    hidden = torch.tensor([[ITEMS + 1, MASK, ITEMS + 3, PAD]])
    moved = both(hidden.masked_fill(hidden == ITEMS + 3, ITEMS + 9))["states"]
    assert not torch.allclose(both(hidden)["states"][0, 1], moved[0, 1])


def test_a_hidden_place_reads_the_last_visible_item_before_it():
    tokens = torch.tensor([[MASK, ITEMS + 1, MASK, MASK, ITEMS + 2, MASK, PAD]])
    assert _before_hidden(tokens).tolist() == [[PAD, PAD, ITEMS + 1, ITEMS + 1, PAD, ITEMS + 2, PAD]]


def test_the_loss_is_the_mean_cross_entropy_over_the_items_that_were_for_sale():
    torch.manual_seed(0)
    counts = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 0])  # the first one is taken all the same
    model = SequenceModel(NetworkSection(hidden=16), [], counts).eval()
    model.seen.data.fill_(-0.2)
    model.popularity.data.fill_(0.05)
    tokens = torch.tensor([[ITEMS + 1, MASK, ITEMS + 4], [ITEMS + 7, MASK, PAD]])
    labels = torch.tensor([[IGNORE, 5, IGNORE], [IGNORE, 0, IGNORE]])
    found = model(tokens)
    logs = np.log1p(counts[1:9])
    popular = np.array([0, *(logs - logs.mean()), -np.inf])
    scores = found["states"][:, 1] @ found["vectors"].T + 0.5 * torch.tensor(popular, dtype=torch.float32)
    scores[0, [1, 4]] -= 2
    scores[1, 7] -= 2
    expected = -scores.log_softmax(1)[[0, 1], [5, 0]].mean()
    assert model(tokens, labels)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["histories", "events"])
def test_every_training_event_is_read_and_no_held_out_one(recipe, shop, kind):
    network, masks = NetworkSection(), MasksSection(random=0, last=1, rows=kind)
    found = read_histories(shop / "events.parquet", shop / "items.parquet")
    visits = training_rows(found, kind)
    rows = Rows(found, visits, network, masks, 0)
    predicted = defaultdict(list)
    for number, (user, _) in enumerate(visits):
        tokens, labels = rows[number]
        training = found.training(user).tolist()
        assert [int(token) - ITEMS for token in tokens[:-1]] == training[: len(tokens) - 1]
        assert tokens[-1] == MASK and (labels[:-1] == IGNORE).all() and labels[-1] == training[len(tokens) - 1]
        predicted[int(user)].append(int(labels[-1]))
    for user in range(len(found.user_ids)):
        training = found.training(user).tolist()
        assert sorted(predicted[user]) == sorted(training[1:] if kind == "events" else training[1:][-1:])


@pytest.mark.parametrize(
    ("sections", "found"),
    [
        ({"network": {"ids": False}}, "neither ids nor codes"),
        ({"network": {"kind": "sasrec"}, "masks": {"last": 1}}, "masks for sasrec"),
        ({"model": {"name": "runs/x"}}, "network beside an earlier run"),
        ({"masks": {"random": 0}}, "no mask"),
    ],
)
def test_impossible_recipes_are_refused(recipe, sections, found):
    with pytest.raises(RecipeError, match=found):
        load_recipe(recipe("wrong", **sections))


DIE_AT_5 = """
import os, signal, sys
from lore.train.common import trainer
after = trainer.Recorder.on_step_end
def dies(self, args, state, control, **kwargs):
    if state.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return after(self, args, state, control, **kwargs)
trainer.Recorder.on_step_end = dies
from lore.run.runner import run_command
sys.exit(run_command([sys.argv[1]]))
"""


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_bytes(recipe, shop, runs):
    options = {"network": {"hidden": 16, "id_dropout": 0.3}, "codes": {"paths": [str(shop / "codes.json")]}}
    whole = run_recipe(recipe("whole", **options))
    path = recipe("killed", **options)
    done = subprocess.run([sys.executable, "-c", DIE_AT_5, str(path)], cwd=ROOT, capture_output=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    again = run_recipe(path)
    assert whole.metrics_path.read_bytes() == again.metrics_path.read_bytes()
    assert (whole / "model/model.safetensors").read_bytes() == (again / "model/model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(recipe, shop, runs):
    path = recipe("two", network={"hidden": 16, "dropout": 0}, codes={"paths": [str(shop / "codes.json")]}, train={"save_every": 0})
    one = [line["loss"] for line in run_recipe(path).metrics()]
    (runs / "two").rename(runs / "one")
    command = [sys.executable, "-m", "lore", "launch", str(path), "--config", "cpu2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["loss"] for line in RunFolder(runs / "two").metrics()] == pytest.approx(one, abs=1e-4)
