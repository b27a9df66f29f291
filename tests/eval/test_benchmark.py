"""Benchmark definitions: recipes that name one get its data, prompt and metrics; their own keys win; sealed seeds stay sealed."""

import json
import os

import pytest
from openai_server import MODEL, reply, serve
from source_files import write_parquet
from test_importer_rair import SECRET, rair_rows, write_rair

from lore.config.stages import load_recipe
from lore.data.importers import source_options
from lore.data.parquet import read_pairs
from lore.data_synth.shop.config import SEALED_SEEDS
from lore.data_synth.shop.write import write_world
from lore.eval.benchmark import benchmark_names, load_benchmark, write_benchmark_pairs
from lore.rubric.rubric import load_rubric
from lore.run.dependencies import recipes_of
from lore.run.runner import run_recipe
from lore.support.errors import LoreError

JUDGES = "judges: {mine: {kind: predictions, predictions: p.jsonl}}"


def recipe_of(tmp_path, text: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"stage: evaluate\nrun: bench\n{text}\n")
    return load_recipe(path)


@pytest.mark.parametrize("name", benchmark_names())
def test_every_benchmark_is_a_whole_recipe_but_for_its_judges(tmp_path, name):
    recipe = recipe_of(tmp_path, f"benchmark: {name}\n{JUDGES}")
    rubric = load_rubric(recipe.data.rubric)
    known = {f"f1_{tier}" for tier in rubric.tier_ids}
    assert {shown for shown in recipe.metrics.shown or [] if shown.startswith("f1_")} <= known
    assert set(recipe.metrics.prior or {}) | set(recipe.metrics.gains or {}) <= set(rubric.tier_ids)
    assert load_benchmark(name)["name"] == name and len(load_benchmark(name)["about"]) > 100
    assert name != "shop" or recipe.baselines == []  # it has no pairs that one could be trained on
    if recipe.data.source != "pairs":
        assert set(recipe.data.options) <= {*source_options(recipe.data.source), "keep_bad_photos"}


def test_the_benchmarks_are_there():
    assert {"rair", "shop", "local_life", "crowdflower", "wands", "homedepot", "esci"} <= set(benchmark_names())
    assert load_benchmark("esci")["recipe"]["metrics"]["gains"] == {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}


def test_a_recipes_own_keys_win_and_shares_are_not_mixed(tmp_path):
    text = f"benchmark: rair\n{JUDGES}\ndata: {{path: mine.jsonl}}\nprompt: {{language: zh}}\nmetrics: {{prior: {{L4: 1.0}}}}"
    recipe = recipe_of(tmp_path, text)
    assert (recipe.data.path, recipe.data.source, recipe.data.options) == ("mine.jsonl", "rair", {"keep_bad_photos": True})
    assert (recipe.prompt.language, recipe.prompt.detail) == ("zh", "full")
    assert recipe.metrics.prior == {"L4": 1.0}
    other = recipe_of(tmp_path, f"benchmark: rair\n{JUDGES}\ndata: {{path: mine.parquet, source: pairs}}")
    assert other.data.options == {}


def test_an_unknown_benchmark_names_the_nearest_and_a_broken_one_its_file(tmp_path):
    with pytest.raises(LoreError, match=r"no benchmark 'raair'; the shipped ones are .*wands\. Nearest: 'rair'\. Give your own"):
        recipe_of(tmp_path, f"benchmark: raair\n{JUDGES}")
    (tmp_path / "own.yaml").write_text("recipe: {data: {rubric: shop}}\nsubsets: []\n")
    with pytest.raises(LoreError, match="own.yaml has the unknown key subsets"):
        recipe_of(tmp_path, f"benchmark: {tmp_path / 'own.yaml'}\n{JUDGES}")


FOREIGN = {
    "judges": "{mine: {kind: model, model: {name: hub/model, trust_remote_code: true}}}",
    "needs": "[other.yaml]",
    "run": "elsewhere",
    "seed": "1",
    "stage": "evaluate",
    "sampling": "{max_tokens: 9}",
    "train_path": "x.parquet",
    "robustness": "{}",
    "benchmark": "rair",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_a_benchmark_sets_the_test_set_and_nothing_else(tmp_path, key):
    own = tmp_path / "own.yaml"
    own.write_text(f"recipe:\n  data: {{path: x.parquet, rubric: shop}}\n  {key}: {FOREIGN[key]}\n")
    with pytest.raises(LoreError, match=rf"own.yaml sets {key}, but a benchmark may come from somebody else and sets only data"):
        recipe_of(tmp_path, f"benchmark: {own}\nprompt: {{order: answer_only, detail: name}}\n{JUDGES}")


BELOW = "recipe: {data: {path: '${LORE_RUNS}/benchmarks/x'}}"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{BOMB}recipe: {{data: {{path: *i}}}}", "expand to over 1,000,000 values"),
        ("recipe: {data: {path: '${HOME}/x', rubric: shop}}", r"\$\{HOME\}"),  # an environment variable may be a key
        ("recipe: {data: [1]}", "expected a section with keys"),
        ("recipe: {data: {path: x.csv, source: table, image_root: /}}", "sets data.image_root"),  # every photo of the machine
        ("recipe: {metrics: null}", "expected a section with keys"),
        ("recipe: {data: {path: /etc/made}}\nworld: {seeds: [7001], pairs: {test: 9}}", "written below"),
        ("recipe: {data: {path: '${LORE_RUNS}/benchmarks/../x'}}\nworld: {seeds: [7001], pairs: {test: 9}}", "written below"),
        (f"{BELOW}\nworld: {{seeds: [7001], pairs: {{'../test': 9}}}}", "train"),
        (f"{BELOW}\nworld: {{seeds: [7001], pairs: {{test: 99999999}}}}", "1000000"),
        (f"{BELOW}\nworld: {{seeds: [4294967296], pairs: {{test: 9}}}}", "4294967295"),
        (f"{BELOW}\nworld: {{seeds: [1], pairs: {{test: 9}}, language: ../x}}", "'en' or 'zh'"),
    ],
)
def test_a_benchmark_from_somebody_else_is_bounded(tmp_path, runs, text, said):
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(LoreError, match=said):
        recipe_of(tmp_path, f"benchmark: {own}\n{JUDGES}")


def test_a_benchmark_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "own.yaml")
    with pytest.raises(LoreError, match="is not a file"):
        recipe_of(tmp_path, f"benchmark: {tmp_path / 'own.yaml'}\n{JUDGES}")


def test_the_shops_pairs_come_from_sealed_seeds_which_no_recipe_takes(tmp_path, monkeypatch, root, runs):
    world = load_benchmark("shop")["world"]
    assert set(world["seeds"]) <= SEALED_SEEDS
    small = load_benchmark("shop") | {"world": world | {"pairs": {"test": 24}}}
    monkeypatch.setattr("lore.eval.benchmark.load_benchmark", lambda name: small)
    path = load_benchmark("shop")["recipe"]["data"]["path"]
    write_benchmark_pairs("shop", path)
    write_benchmark_pairs("shop", path)  # what is there stays
    pairs = list(read_pairs(path, split="test"))
    assert len(pairs) == 24 * len(world["seeds"]) == len({pair.pair_id for pair in pairs})
    other = small | {"world": small["world"] | {"seeds": world["seeds"][:1], "pairs": {"test": 12}}}
    monkeypatch.setattr("lore.eval.benchmark.load_benchmark", lambda name: other)
    with pytest.raises(LoreError, match="which benchmark own.yaml does not generate"):
        write_benchmark_pairs("own.yaml", path)  # nor would its own be left among the shop's
    assert len(list(read_pairs(path, split="test"))) == len(pairs)
    monkeypatch.setattr("lore.eval.benchmark.load_benchmark", lambda name: small)
    write_benchmark_pairs("shop", str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()  # a recipe's own path is the user's

    sealed = min(SEALED_SEEDS)
    (tmp_path / "world.yaml").write_text(f"stage: world\nrun: w\nseed: {sealed}\n")
    with pytest.raises(LoreError, match="sealed for benchmarks"):
        load_recipe(tmp_path / "world.yaml")
    with pytest.raises(LoreError, match="must stay unseen in training"):
        write_world(tmp_path / "w", pairs=10, seed=sealed)
    seeds = {load_recipe(one).seed for file in (root / "recipes").rglob("*.yaml") for one in recipes_of(file)}
    assert not seeds & SEALED_SEEDS


def test_rair_in_its_published_form_is_judged_from_all_three_configs_and_no_rule_list_leaves(tmp_path, runs, capsys):
    folder, good = tmp_path / "RAIR", rair_rows()[0]
    configs = {"General_Subset": good, "Hard_Subset": good | {"image_base64": "###"}, "Visual_Subset": good}
    card = "---\nconfigs:\n"
    for number, (name, row) in enumerate(configs.items()):
        rows = [row | {"item_id": 10 * number + i, "groundtruth": f"L{i + 1}", "subset": ""} for i in range(4)]
        (folder / name).mkdir(parents=True)
        write_rair(folder / name / "part.parquet", rows)
        card += f"- config_name: {name}\n  data_files: [{{split: train, path: {name}/*.parquet}}]\n"
    (folder / "README.md").write_text(f"{card}---\n")

    with serve(lambda request: reply("<reason>L1?</reason>\n<verdict>L4</verdict>")) as server:
        body = {
            "stage": "evaluate",
            "run": "rair",
            "benchmark": "rair",
            "data": {"path": f"hub:{folder}"},
            "judges": {"server": {"kind": "endpoint", "endpoint": {"url": server.url, "model": MODEL}, "scores": False}},
            "metrics": {"bootstrap_samples": 20},
        }
        (tmp_path / "rair.yaml").write_text(json.dumps(body))
        run_recipe(tmp_path / "rair.yaml")
        sent = json.dumps([request.body for request in server.requests], ensure_ascii=False)
    judge = json.loads((runs / "rair" / "metrics.json").read_text())["judges"]["server"]
    assert {name: part["pairs"] for name, part in judge["slices"].items()} == dict.fromkeys(configs, 4)
    assert judge["pairs"] == 12 and judge["metrics"]["acc_k"]["value"] == 0.25
    assert judge["photos"] == {"seen": 8, "failed": 4}
    assert "server: the photos of 4 of 12 pairs could not be read, so these pairs were judged as text" in capsys.readouterr().out
    assert sent.count("data:image/") == 8 and "狗胸背带大型犬" in sent
    assert SECRET not in sent and "主配件匹配" not in sent and good["vqa_result"] not in sent
    assert judge["under_prior"]["metrics"]["acc_k"]["value"] == pytest.approx(0.6)


def test_a_benchmark_runs_whole_on_files_of_its_published_form(tmp_path, runs, monkeypatch):
    """ESCI's two files, both tasks from the same verdicts."""
    labels = ["E", "S", "C", "I"]
    examples = {
        "example_id": range(64),
        "query": [f"pencil {i // 4}" for i in range(64)],
        "product_id": [f"B{i}" for i in range(64)],
        "product_locale": ["us"] * 64,
        "esci_label": [labels[i % 4] for i in range(64)],
        "small_version": [int(i < 48) for i in range(64)],
        "large_version": [1] * 64,
        "split": ["train" if i < 32 else "test" for i in range(64)],
    }
    write_parquet(tmp_path / "shopping_queries_dataset_examples.parquet", examples)
    products = {f"product_{name}": ["x"] * 64 for name in ("description", "bullet_point", "brand", "color")}
    products |= {"product_id": examples["product_id"], "product_locale": ["us"] * 64, "product_title": ["pencil box"] * 64}
    write_parquet(tmp_path / "shopping_queries_dataset_products.parquet", products)
    rows = [{"pair_id": str(i), "tier": labels[i % 4] if i % 8 else "S"} for i in range(32, 64)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "esci.yaml"
    recipe.write_text(
        f"stage: evaluate\nrun: esci\nbenchmark: esci\ndata: {{path: {tmp_path}}}\nslices: ['task:1', 'task:2']\n"
        f"judges: {{mine: {{kind: predictions, predictions: {tmp_path / 'p.jsonl'}}}}}\n"
    )
    run_recipe(recipe)
    judge = json.loads((runs / "esci" / "metrics.json").read_text())["judges"]["mine"]
    ranking, classes = judge["slices"]["task:1"], judge["slices"]["task:2"]
    assert (ranking["pairs"], classes["pairs"]) == (16, 32)
    assert classes["metrics"]["micro_f1"]["value"] == pytest.approx(28 / 32)
    # Every second query answers S for its E: the best item ties with the S item at gain 0.1 and is half the time second.
    tied = ((1 + 0.1) / 2 * (1 + 0.63093) + 0.01 / 2) / (1 + 0.1 * 0.63093 + 0.01 / 2)
    assert ranking["metrics"]["ndcg"]["value"] == pytest.approx((1 + tied) / 2, abs=1e-4)
