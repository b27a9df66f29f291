"""Stages dpo and kto on tiny real models: start and reference, photos, losses, resuming, the recipes' own checks."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from run_names import undeclared
from safetensors.torch import load_file
from test_distributed import launch, launch_script
from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

from lore.config.stages import load_recipe
from lore.data.parquet import read_pairs
from lore.engines.config import ModelSection
from lore.engines.open_engine import open_engine
from lore.judge.card import read_card
from lore.rubric.rubric import load_rubric
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.train.common import shared_prefix
from lore.train.common.shared_prefix import lay_out
from lore.train.pool.pool import POOL_SCHEMA

RUBRIC = load_rubric("shop")
TIERS = RUBRIC.tier_ids
# Kills its own process in the middle of writing a checkpoint's optimizer state.
DIE_WHILE_SAVING = """
import os, signal, sys, torch
save = torch.save
def half(obj, path, *args, **kwargs):
    save(obj, path, *args, **kwargs)
    if "checkpoint-4" in str(path) and str(path).endswith("optimizer.pt"):
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
from lore.run.runner import run_command
sys.exit(run_command([sys.argv[1]]))
"""


def answer(tier: str, why: str) -> str:
    return f"<reason>{why}</reason>\n<verdict>{tier}</verdict>"


@pytest.fixture(scope="session")
def pool(tiny, tmp_path_factory):
    """A pool over the tiny shop with made-up samples: of four answers one or two give the label."""
    rows = []
    for index, pair in enumerate(read_pairs(tiny.pairs, split="train", limit=40)):
        others = [tier for tier in TIERS if tier != pair.label]
        tiers = [pair.label, others[index % 3], others[(index + 1) % 3], pair.label if index % 2 else others[0]]
        samples = [
            {"text": answer(tier, f"{pair.query} {k}"), "tokens": 20, "tier": tier, "truncated": False}
            for k, tier in enumerate(tiers)
        ]
        rows.append(
            {
                "pair_id": pair.pair_id,
                "query": pair.query,
                "label": pair.label,
                "label_weight": 1.0,
                "slices": pair.slices,
                "tier": others[0],
                "probabilities": [0.25] * 4,
                "confidence": 0.25,
                "agrees": False,
                "samples": samples,
                "pass_rate": tiers.count(pair.label) / 4,
                "sample_agreement": 0.5,
            }
        )
    path = tmp_path_factory.mktemp("pool") / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=POOL_SCHEMA.with_metadata({"lore.tiers": json.dumps(TIERS)})), path)
    return str(path)


@pytest.fixture(scope="session")
def judges(tiny, tmp_path_factory):
    """Folders of tiny judges: adapters on the vision and the text model, with layers trained in full beside them."""
    folder, before = tmp_path_factory.mktemp("judges"), os.environ.get("LORE_RUNS")
    os.environ["LORE_RUNS"] = str(folder / "runs")
    lora = {"rank": 4, "targets": ".*(text_model|layers).*_proj", "modules_to_save": ["embed_tokens", "lm_head"]}
    try:
        for kind in ("vision", "text"):
            path = folder / f"{kind}.yaml"
            path.write_text(tiny.recipe(kind, model=kind, lora=lora, steps=6, save_every=0))
            run_recipe(path).close()
    finally:
        if before is None:
            del os.environ["LORE_RUNS"]
        else:
            os.environ["LORE_RUNS"] = before
    return {kind: folder / "runs" / kind / "model" for kind in ("vision", "text")}


@pytest.fixture
def recipe(tiny, runs, pool, judges, tmp_path):
    """Writes a dpo or kto recipe; called twice with one name it is the same recipe."""

    def write(run: str, stage: str = "dpo", kind: str = "text", model=None, preferences=None, train=None, **more):
        base = {"name": str(getattr(tiny, kind)), "adapter": str(judges[kind])}
        body = {
            "stage": stage,
            "run": run,
            "model": model or base,
            "data": {"path": str(tiny.pairs), "rubric": "shop", "split": "train"},
            "prompt": {"order": "reason_first", "detail": "name", "max_prompt_tokens": 512},
            "preferences": preferences or {"pool": {"path": pool}},
            "train": {"steps": 4, "batch_size": 8, "lr": 1e-2, "log_every": 1, "save_every": 2} | (train or {}),
            "watch": {"every": 0},
        } | more
        path = tmp_path / f"{run}.yaml"
        path.write_text(json.dumps(body, indent=1))
        return path

    return write


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "model").glob("*.safetensors")))


@pytest.mark.parametrize("kind", ["text", "vision"])
@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_rewards_begin_at_zero_and_good_answers_gain_on_bad_ones(recipe, judges, stage, kind):
    folder = run_recipe(recipe("aligned", stage, kind, train={"steps": 24, "lr": 3e-3}))
    first, last = folder.metrics()[0], folder.metrics()[-1]
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-4) and first["rewards/rejected"] == pytest.approx(0, abs=1e-4)
    assert last["rewards/chosen"] - last["rewards/rejected"] > 0.05
    if stage == "dpo":
        assert first["loss"] == pytest.approx(np.log(2), abs=1e-4) and last["loss"] < first["loss"]
    before, after = load_file(judges[kind] / "adapter_model.safetensors"), weights(folder)
    assert before.keys() == after.keys() and any((before[name] != after[name]).any() for name in before)
    assert any("lm_head" in name for name in after)
    assert read_card(folder / "model")["renderer_hash"] == read_card(judges[kind])["renderer_hash"]
    assert not list(folder.path.rglob("ref"))  # neither in the model nor in a checkpoint


def test_the_logged_likelihoods_are_those_of_the_model_with_its_full_layers(recipe, judges, tiny, pool):
    """TRL computes them from the output layer's weights by itself, past PEFT's wrapper."""
    folder = run_recipe(recipe("logged", train={"steps": 1, "batch_size": 80, "save_every": 0}))
    import datasets

    rows = datasets.Dataset.from_file(str(folder / "data" / "rows.arrow"))
    assert len(rows) == 80
    engine = open_engine(ModelSection(name=str(tiny.text), adapter=str(judges["text"])), RUBRIC)
    sums = {"chosen": [], "rejected": []}
    for row in rows:
        for name, found in sums.items():
            ids = torch.tensor([row["prompt_ids"] + row[f"{name}_ids"]])
            with torch.no_grad():
                logs = torch.log_softmax(engine.model(input_ids=ids).logits[0, :-1].float(), dim=-1)
            tokens = logs.gather(1, ids[0, 1:, None])[:, 0]
            found.append(tokens[len(row["prompt_ids"]) - 1 :].sum().item())
    for name, found in sums.items():
        assert folder.metrics()[0][f"logps/{name}"] == pytest.approx(np.mean(found), rel=1e-4)


@pytest.mark.parametrize(
    "stage, kind", [pytest.param("dpo", "vision", marks=pytest.mark.slow), pytest.param("kto", "text", marks=pytest.mark.long)]
)
def test_killed_while_saving_it_goes_on_and_ends_with_the_same_weights(recipe, runs, stage, kind):
    whole = run_recipe(recipe("whole", stage, kind, train={"steps": 6}))
    path = recipe("killed", stage, kind, train={"steps": 6})
    done = subprocess.run([sys.executable, "-c", DIE_WHILE_SAVING, str(path)], cwd=ROOT, capture_output=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    folder = RunFolder(runs / "killed")
    assert (folder / "checkpoints" / "checkpoint-2" / "complete").is_file()
    run_recipe(path)
    assert whole.metrics_path.read_bytes() == folder.metrics_path.read_bytes()
    one, other = weights(whole), weights(folder)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, kind, loss",
    [("dpo", "vision", None), ("kto", "text", "apo_zero_unpaired"), ("kto", "text", None)],
    ids=["dpo with photos", "kto without a divergence", "kto"],
)
def test_two_cpu_processes_learn_what_one_does(recipe, runs, judges, stage, kind, loss):
    more = {} if loss is None else {"loss": loss}
    path = recipe("both", stage, kind, train={"steps": 8, "lr": 1e-3}, **more)
    one = run_recipe(path)
    (runs / "both").rename(runs / "one")
    done = launch("cpu2", path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    two, one = RunFolder(runs / "both"), RunFolder(runs / "one")
    before, moved = load_file(judges[kind] / "adapter_model.safetensors"), weights(one)
    way = max((moved[name] - before[name]).abs().max().item() for name in moved)
    apart = max((moved[name] - other).abs().max().item() for name, other in weights(two).items())
    # KTO estimates the divergence within the pass of each process, so its loss is another one by a little.
    assert apart < (0.02 if (stage, loss) != ("kto", None) else 0.5) * way
    lost = [[line["loss"] for line in folder.metrics()] for folder in (one, two)]
    assert lost[1] == pytest.approx(lost[0], abs=1e-3 if (stage, loss) != ("kto", None) else 2e-2)


def test_a_watched_run_leaves_its_best_weights_without_the_reference(recipe, runs):
    watch = {"every": 2, "pairs": 4, "samples": 2, "max_tokens": 8, "split": "train"}
    folder = run_recipe(recipe("watched", watch=watch))
    assert undeclared(folder.path) == []
    watches = [line for line in folder.metrics() if "probe" in line]
    looked = [line["step"] for line in watches]
    assert looked == [0, 2, 4]
    assert all({"reward", "reward/verdict", "reward/format"} <= line["probe"].keys() for line in watches)
    assert "margin" in watches[-1]["training"]
    assert folder.summary["best_step"] in looked
    assert (folder / "model" / "adapter_model.safetensors").is_file() and not (folder / "model" / "ref").exists()
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Implicit rewards of good and bad answers" in report and "Reward components on the probe" in report


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_without_an_adapter_a_second_model_is_the_reference(recipe, tiny, stage):
    folder = run_recipe(recipe("full", stage, model={"name": str(tiny.text)}, train={"lr": 1e-3}))
    first, last = folder.metrics()[0], folder.metrics()[-1]
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-4)
    assert last["rewards/chosen"] != 0 and "model.embed_tokens.weight" in weights(folder)


def test_a_new_adapter_on_a_merged_judge(recipe, tiny):
    folder = run_recipe(recipe("new", model={"name": str(tiny.text), "lora": {"rank": 4}}))
    assert folder.metrics()[0]["rewards/chosen"] == 0 and folder.metrics()[-1]["rewards/margins"] > 0
    assert all("lora" in name for name in weights(folder))


@pytest.mark.parametrize("loss", [{"ipo": 1.0}, {"sigmoid": 1.0, "sft": 0.5}, {"robust": 1.0}, {"apo_zero": 1.0}])
def test_losses_and_their_weights(recipe, loss):
    more = {"label_smoothing": 0.1} if "robust" in loss else {}
    folder = run_recipe(recipe("loss", train={"steps": 3, "save_every": 0}, loss=loss, **more))
    assert folder.metrics()[-1]["rewards/margins"] > folder.metrics()[0]["rewards/margins"]


@pytest.mark.slow
@pytest.mark.parametrize("stage, kind, full", [("dpo", "text", False), ("dpo", "text", True), ("kto", "vision", False)])
def test_a_prefix_that_answers_share_changes_no_loss(recipe, tiny, stage, kind, full, monkeypatch):
    seen = []

    def counted(rows, photo=None):
        seen.append((sum(map(len, rows)), layout := lay_out(rows, photo)))
        return layout

    monkeypatch.setattr(shared_prefix, "lay_out", counted)
    model, found = {"name": str(getattr(tiny, kind))} if full else None, []
    for shared in (False, True):
        train = {"shared_prefix": shared, "save_every": 0, "lr": 1e-3, "micro_batch_size": 4 if stage == "dpo" else 8}
        found.append(run_recipe(recipe(f"{stage}{shared}", stage, kind, model, train=train)).metrics())
    assert any(layout is not None and len(layout.ids) < 0.8 * tokens for tokens, layout in seen[2:])  # behind those of the check
    for name in ("loss", "rewards/chosen", "logps/rejected"):
        assert [line[name] for line in found[1]] == pytest.approx([line[name] for line in found[0]], rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_dpo_under_fsdp2_where_one_process_finds_no_prefix_has_the_losses_of_one_on_whole_rows(recipe, runs, tiny):
    # FSDP2 makes units of their own of the trained copies, which the fused output layer reads without calling them.
    model = {"name": str(tiny.text), "lora": {"rank": 4, "modules_to_save": ["embed_tokens", "lm_head"]}}
    train = {"lr": 1e-3, "save_every": 0, "micro_batch_size": 4}
    one = run_recipe(recipe("one", model=model, train=train | {"shared_prefix": False}))
    path = recipe("two", model=model, train=train | {"shared_prefix": True, "gradient_checkpointing": True})
    done, two = launch_script("fsdp2", "prefixes_on_one_rank.py", path), RunFolder(runs / "two")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [done.stdout.count(line) for line in ("rank 0: shared", "rank 1: shared", "rank 1: alone")] == [8, 4, 4]
    for name in ("loss", "rewards/chosen", "logps/rejected"):
        assert [line[name] for line in two.metrics()] == pytest.approx([line[name] for line in one.metrics()], rel=1e-4, abs=1e-4)
    expected, found = weights(one), weights(two)
    assert max((expected[name] - found[name]).abs().max().item() for name in expected) < 1e-4


@pytest.mark.long
def test_one_pass_and_several_make_the_same_step(recipe):
    whole = run_recipe(recipe("whole", kind="vision"))
    passes = run_recipe(recipe("passes", kind="vision", train={"micro_batch_size": 2}))
    for one, other in zip(whole.metrics(), passes.metrics(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)


def test_a_vision_judge_that_is_shown_no_photo(recipe, tiny):
    prompt = {"order": "reason_first", "detail": "name", "max_prompt_tokens": 512, "photo": False}
    folder = run_recipe(recipe("blind", kind="vision", prompt=prompt, model={"name": str(tiny.vision), "lora": {"rank": 4}}))
    assert folder.metrics()[-1]["rewards/margins"] > 0
    assert not [name for name in weights(folder) if "vision" in name or "connector" in name]


def test_raters_tables_alone_and_beside_a_pool(recipe, tiny, pool, tmp_path, interrupt_after):
    pairs = list(read_pairs(tiny.pairs, split="train", limit=4))
    table = tmp_path / "raters.jsonl"
    rows = [
        {"pair_id": p.pair_id, "chosen": answer(p.label, "yes"), "rejected": answer("L1", "no"), "source": "anna"} for p in pairs
    ]
    rows.append({"pair_id": "nobody", "chosen": answer("L4", "yes"), "rejected": "no", "source": "anna"})
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    interrupt_after("rows.arrow")
    with pytest.raises(KeyboardInterrupt):  # the run resumes with its rows and its rejected ones
        run_recipe(recipe("alone", preferences={"tables": [str(table)]}))
    alone = run_recipe(recipe("alone", preferences={"tables": [str(table)]}))
    assert alone.summary["preferences"] == 4 and alone.summary["rejected"] == 1
    (line,) = (alone / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "unknown_pair"
    both = run_recipe(recipe("both", preferences={"tables": [str(table)], "pool": {"path": pool, "limit": 10}}))
    assert both.summary["preferences"] > alone.summary["preferences"]


def test_nothing_to_prefer_is_an_error(recipe, pool, tmp_path):
    table = tmp_path / "none.jsonl"
    table.write_text('{"pair_id": "nobody", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(LoreError, match="no preference to learn from: 1 were rejected"):
        run_recipe(recipe("none", preferences={"tables": [str(table)]}))
    with pytest.raises(LoreError, match="No row of .* is chosen"):
        run_recipe(recipe("window", preferences={"pool": {"path": pool, "pass_rate": [0.9, 1.0]}}))
    with pytest.raises(LoreError, match="pool.yaml"):
        run_recipe(recipe("missing", preferences={"pool": {"path": str(tmp_path / "pool.parquet")}}))


@pytest.mark.parametrize(
    ("stage", "changes", "says"),
    [
        ("dpo", {"preferences": {"per_prompt": 2}}, "a pool, tables of preferences, or both"),
        ("dpo", {"loss": {"sft": 1.0}}, "is no preference loss"),
        ("dpo", {"loss": {"sigmoid": 0.0}}, "weight above 0"),
        ("dpo", {"loss": {"sigmod": 1.0}}, "sigmod"),
        ("dpo", {"label_smoothing": 0.1}, "without loss robust"),
        ("kto", {"train": {"micro_batch_size": 1}}, "at least 2"),
        ("dpo", {"train": {"packing": True}}, "packed or flattened rows"),
    ],
)
def test_impossible_recipes_are_refused(recipe, stage, changes, says):
    with pytest.raises(LoreError, match=says):
        load_recipe(recipe("bad", stage, **changes))


def test_a_start_that_is_not_the_reference_stops_the_run(recipe, monkeypatch):
    from lore.train.preference.preference import _DPO

    made = _DPO.__init__

    def other(self, *args, **kwargs):
        made(self, *args, **kwargs)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if ".ref." in name and "lora_B" in name:
                    parameter.add_(1.0)

    monkeypatch.setattr(_DPO, "__init__", other)
    with pytest.raises(LoreError, match="before the first update and has to be 0"):
        run_recipe(recipe("other"))


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_rows_that_would_change_one_another_in_a_batch_stop_the_run(recipe, tiny, stage, tmp_path):
    """Phi-3's longrope computes a whole batch in another way if one of its rows is longer than its original length."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.text)
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 90}
    rope |= {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8}
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    limits = {"max_position_embeddings": 1024, "original_max_position_embeddings": 90, "bos_token_id": None}
    Phi3ForCausalLM(Phi3Config(**size, **ids, **limits, rope_parameters=rope)).save_pretrained(tmp_path / "phi3")
    tokenizer.save_pretrained(tmp_path / "phi3")
    with pytest.raises(LoreError, match=r"more than 90 tokens.*longrope.*beside it"):
        run_recipe(recipe(stage, stage, model={"name": str(tmp_path / "phi3")}))
