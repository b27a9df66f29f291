"""What a stage would only find at its end, or as an IndexError, stops it before step 0; what can be mended is."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from accelerate.utils import DeepSpeedPlugin
from safetensors.torch import load_file, save_file
from tokenizers_for_tests import chatml
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from lore.config.dry_pass import CHECKS, STAGE_CHECKS, listed
from lore.config.recipe import run_root
from lore.config.stages import STAGES
from lore.data.parquet import PairWriter, read_pairs
from lore.engines.config import ModelSection
from lore.engines.loading import load_model
from lore.run import dry_pass as passes
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.train.common.checkpoint import check_gathering, check_room, saved_bytes, size
from lore.train.export import export

LLAMA2 = {"temperature": 0.9, "top_p": 0.6, "do_sample": False}  # as shipped with Llama-2-chat
ANSWER_ONLY = {"order": "answer_only"}
FEW = {"steps": 2, "save_every": 0}
NOTHING_STARTED = r"dry pass of \w+: one problem was found, so nothing was started"


@pytest.fixture
def spoiled(tiny, tmp_path):
    """spoiled(config values, generation_config=..., token=...) -> a copy of the tiny text model that has them."""

    def make(generation: dict | None = None, token: str | None = None, judge=None, **config):
        folder = tmp_path / "base"
        shutil.copytree(judge or tiny.text, folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        if generation is not None:
            known = json.loads((folder / "generation_config.json").read_text())
            (folder / "generation_config.json").write_text(json.dumps(known | generation))
        if token is not None:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.add_special_tokens({"pad_token": token})
            tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def run(runs, tmp_path):
    """Runs a recipe given as JSON, with changed sections."""

    def start(text: str, **sections):
        body = json.loads(text)
        for name, section in sections.items():
            body[name] = body.get(name, {}) | section if isinstance(section, dict) else section
        path = tmp_path / f"{body['run']}.yaml"
        path.write_text(json.dumps(body))
        return run_recipe(path)

    return start


def nothing_is_left(run_name: str) -> bool:
    folder = RunFolder(run_root() / run_name)
    return folder.exists and not (folder / "model").exists() and not list(folder.path.rglob("*dry_pass*"))


# One table


def test_every_check_of_the_table_is_described_and_used():
    assert set(STAGE_CHECKS) - {"export"} <= set(STAGES)
    asking = {"pool", "evaluate", "synthesize", "label"}
    training = {"sft", "grpo", "ppo", "dpo", "kto", "pretrain", "distill", "semantic_ids", "recommender"}
    assert training | asking | {"recommend_eval", "export"} == set(STAGE_CHECKS)
    assert {name for names in STAGE_CHECKS.values() for name in names} == set(CHECKS)


def test_a_pass_with_other_checks_than_the_table_is_an_error():
    checks = dict.fromkeys(STAGE_CHECKS["pool"], lambda: None)
    passes.dry_pass("pool", checks)
    for wrong in (checks | {"more": lambda: None}, {"positions": lambda: None}):
        with pytest.raises(ValueError, match="lore.config.dry_pass lists"):
            passes.dry_pass("pool", wrong)


def test_all_problems_are_reported_together_and_each_once():
    def fails(text):
        def check():
            raise LoreError(text)

        return check

    checks = dict.fromkeys(STAGE_CHECKS["pool"], fails("model is gone"))
    checks["positions"] = passes.together([fails("judge a: long"), lambda: None, fails("judge b: long")])
    with pytest.raises(LoreError) as error:
        passes.dry_pass("pool", checks)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("dry pass of pool: 3 problems were found")
    assert lines[1:] == ["engine: model is gone", "positions: judge a: long", "positions: judge b: long"]


def test_a_dry_run_lists_the_checks_that_the_run_does(tiny, tmp_path, lore, monkeypatch, runs):
    path = tmp_path / "sft.yaml"
    path.write_text(tiny.recipe("listed", model="text", lora={}, **FEW))
    listing = lore("run", path, "--dry-run").stdout.partition("# dry pass, before the work starts\n")[2]
    assert [line.removeprefix("#   ") for line in listing.splitlines()[: len(STAGE_CHECKS["sft"])]] == listed("sft")
    done = lore("run", path)
    assert done.returncode == 0, done.stderr
    assert f"dry pass: {len(listed('sft'))} checks in " in done.stdout


# Saving


def test_a_full_training_on_a_generation_config_that_cannot_be_written_keeps_its_weights(tiny, spoiled, run, capsys):
    base = spoiled(generation=LLAMA2)
    folder = run(tiny.recipe("full", model="text", **FEW), model={"name": str(base)})
    assert folder.is_done and (folder / "model" / "model.safetensors").is_file()
    saved = GenerationConfig.from_pretrained(folder / "model")
    assert (saved.temperature, saved.top_p) == (GenerationConfig().temperature, GenerationConfig().top_p)
    AutoModelForCausalLM.from_pretrained(folder / "model").save_pretrained(folder / "again")
    assert capsys.readouterr().out.count("its generation_config sets temperature=0.9, top_p=0.6") == 1


def test_an_adapter_on_it_can_be_merged(tiny, spoiled, run, tmp_path):
    base = spoiled(generation=LLAMA2)
    folder = run(tiny.recipe("adapter", model="text", lora={}, **FEW), model={"name": str(base), "lora": {"rank": 4}})
    assert export(folder.path, tmp_path / "merged", merge=True).written < 1e-3
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert not [path for path in tmp_path.iterdir() if "dry_pass" in path.name]


def test_a_merge_without_room_stops_before_it_scores(tiny, run, tmp_path, monkeypatch):
    folder = run(tiny.recipe("adapter", model="text", lora={}, **FEW))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr("lore.train.export.score_pairs", lambda *_: pytest.fail("scored"))
    with pytest.raises(LoreError, match=NOTHING_STARTED + r"\.\ndisk space: .* needs .* for the merged weights in float32"):
        export(folder.path, tmp_path / "merged", merge=True)


def test_weights_that_nothing_gathers_stop_before_step_0(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for gathers in (False, True):
        args = SimpleNamespace(deepspeed_plugin=DeepSpeedPlugin(zero_stage=3, zero3_save_16bit_model=gathers))
        check_gathering(args, in_full=False)
        if gathers:
            check_gathering(args, in_full=True)
        else:
            with pytest.raises(LoreError, match="zero3_save_16bit_model: true"):
                check_gathering(args, in_full=True)
    check_gathering(SimpleNamespace(deepspeed_plugin=DeepSpeedPlugin(zero_stage=2)), in_full=True)
    check_gathering(SimpleNamespace(), in_full=True)


# Tiers


@pytest.fixture
def ten_tiers(tiny, tmp_path):
    """The data section of the tiny pairs, rated from 1 to 10."""
    tiers = [{"id": str(n), "name": f"grade {n}", "meaning": f"grade {n}", "relevant": n > 5, "value": n} for n in range(1, 11)]
    raw = {"name": "ten", "version": "1", "tiers": tiers, "dimensions": [{"id": "colour", "meaning": "its colour"}]}
    raw["rules"] = [{"id": "colour-same", "dimension": "colour", "tier": "10", "principle": "the same"}]
    (tmp_path / "grades.yaml").write_text(yaml.safe_dump(raw | {"mismatch_tiers": []}))
    grades = {"L1": "1", "L2": "3", "L3": "8", "L4": "10"}
    with PairWriter(tmp_path / "rated.parquet") as writer:
        for split in ("train", "test"):
            for pair in read_pairs(tiny.pairs, split=split, limit=32):
                writer.write(replace(pair, label=grades[pair.label], rationale=None, mismatch=None, rules=[]))
    return {"path": str(tmp_path / "rated.parquet"), "rubric": str(tmp_path / "grades.yaml")}


@pytest.fixture
def by_digit(tmp_path):
    """A small model whose tokenizer splits numbers into digits, as Qwen's does."""
    tokenizer, folder = chatml(), tmp_path / "by_digit"
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(**size, **ids)).save_pretrained(folder)
    return folder


def evaluation(name: str, data: dict, **changes) -> str:
    body = {
        "stage": "evaluate",
        "run": name,
        "data": data,
        "prompt": {"order": "answer_only", "detail": "name", "max_prompt_tokens": 512},
        "baselines": [],
        "metrics": {"bootstrap_samples": 100, "calibrate_on": None},
    }
    return json.dumps(body | changes)


def pooling(name: str, model, data: dict, **changes) -> str:
    body = {"stage": "pool", "run": name, "model": {"name": str(model)}, "data": data | {"split": "train", "limit": 24}}
    body["prompt"] = {"order": "answer_only", "detail": "name", "max_prompt_tokens": 512}
    return json.dumps(body | {"samples": 2, "max_tokens": 24} | changes)


def test_tiers_that_one_token_does_not_tell_apart_stop_every_stage(tiny, by_digit, ten_tiers, run, monkeypatch):
    told = NOTHING_STARTED + r"\.\nverdict tokens: .*no single token distinguishes the tiers of rubric ten"
    with pytest.raises(LoreError, match=told):
        run(tiny.recipe("ten", prompt=ANSWER_ONLY, data=ten_tiers, **FEW), model={"name": str(by_digit)})
    assert nothing_is_left("ten")
    monkeypatch.setattr("lore.engines.loading.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(LoreError, match=told):
        run(pooling("pool", by_digit, ten_tiers))
    with pytest.raises(LoreError, match=told):
        judges = {"tiny": {"model": {"name": str(by_digit)}}}
        run(evaluation("evaluated", ten_tiers | {"split": "test"}, judges=judges))


# Positions and vocabulary


def longest_row(folder) -> int:
    import datasets  # the rows that a run has written

    return max(datasets.Dataset.from_file(str(folder / "data" / "rows.arrow"))["length"])


def test_rows_beyond_the_positions_and_tokens_beyond_the_embeddings_stop_together(tiny, spoiled, run):
    base = spoiled(max_position_embeddings=40, token="[PAD]")
    with pytest.raises(LoreError) as error:
        run(tiny.recipe("long", model="text", lora={}, **FEW), model={"name": str(base), "lora": {"rank": 4}})
    told = str(error.value)
    assert told.startswith("dry pass of sft: 2 problems were found")
    tokens = longest_row(RunFolder(run_root() / "long"))
    assert f"positions: the longest row, prompt and answer, takes {tokens} tokens, and the model has 40 positions" in told
    assert f"'[PAD]' (id {len(AutoTokenizer.from_pretrained(tiny.text))}, the pad token)" in told
    assert nothing_is_left("long")


def test_a_row_as_long_as_the_model_trains(tiny, spoiled, run):
    done = run(tiny.recipe("whole", model="text", lora={}, **FEW))
    tokens = longest_row(done)
    base = spoiled(max_position_embeddings=tokens)
    assert run(tiny.recipe("fits", model="text", lora={}, **FEW), model={"name": str(base), "lora": {"rank": 4}}).is_done
    shutil.rmtree(base)
    base = spoiled(max_position_embeddings=tokens - 1)
    with pytest.raises(LoreError, match=f"takes {tokens} tokens, and the model has {tokens - 1} positions"):
        run(tiny.recipe("beyond", model="text", lora={}, **FEW), model={"name": str(base), "lora": {"rank": 4}})


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_a_prompt_that_leaves_no_positions_for_its_answer_stops(tiny, spoiled, run, stage):
    base = spoiled(max_position_embeddings=120)
    with pytest.raises(LoreError, match=r"the longest prompt of the pool, with an answer of 100 tokens, takes \d+ tokens, and"):
        run(tiny.align(stage, base, stage=stage), rollout={"group": 4, "max_tokens": 100})
    assert nothing_is_left(stage)


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_a_preference_beyond_the_positions_stops(tiny, spoiled, run, tmp_path, stage):
    base = spoiled(max_position_embeddings=40)
    pairs = list(read_pairs(tiny.asked))
    rows = [{"pair_id": pair.pair_id, "chosen": f"<verdict>{pair.label}</verdict>", "rejected": "none"} for pair in pairs]
    if stage == "kto":
        rows = [{"pair_id": row["pair_id"], "completion": row["chosen"], "good": n % 2 == 0} for n, row in enumerate(rows)]
    table = tmp_path / "table.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    body = {
        "stage": stage,
        "run": stage,
        "model": {"name": str(base)},
        "data": {"path": str(tiny.asked), "rubric": "shop"},
        "prompt": {"order": "answer_only", "detail": "name", "max_prompt_tokens": 512},
        "preferences": {"tables": [str(table)]},
        "train": {"steps": 2, "batch_size": 8, "log_every": 1, "save_every": 0},
        "watch": {"every": 0},
    }
    with pytest.raises(LoreError, match=r"positions: the longest row, prompt and answer, takes \d+ tokens"):
        run(json.dumps(body))


def test_a_probe_prompt_counts_with_its_answer(tiny, spoiled, run):
    """The probe's answers may be longer than those of the rollouts."""
    with pytest.raises(LoreError, match=r"prompt of the probe \(watch\), with an answer of 1,010 tokens, takes 1,\d+ tokens"):
        watch = {"every": 1, "pairs": 4, "split": None, "path": str(tiny.pairs), "max_tokens": 1010}
        run(tiny.align("probed", tiny.text, watch=watch))


def test_the_judges_of_an_evaluation_are_checked_before_the_first_one_answers(tiny, spoiled, run, monkeypatch):
    base = spoiled(max_position_embeddings=30)
    monkeypatch.setattr("lore.eval.open_judges.open_engine", lambda *_, **__: pytest.fail("opened"))
    data = {"path": str(tiny.pairs), "rubric": "shop", "split": "test"}
    judges = {"good": {"model": {"name": str(tiny.text)}}, "short": {"model": {"name": str(base)}}}
    judges["gone"] = {"model": {"name": str(base / "gone")}}
    with pytest.raises(LoreError) as error:
        run(evaluation("judged", data, judges=judges))
    told = str(error.value)
    assert "judges.short: the longest prompt with an answer of 16 tokens takes" in told and "has 30 positions" in told
    assert told.count("gone is not a folder") == 1
    assert "judges.good" not in told


def test_the_weights_and_the_adapter_of_every_judge_are_looked_at(tiny, run, tmp_path, monkeypatch):
    monkeypatch.setattr("lore.eval.open_judges.open_engine", lambda *_, **__: pytest.fail("opened"))
    data = {"path": str(tiny.pairs), "rubric": "shop", "split": "test"}
    names = ("renamed", "cut", "gone", "resized")
    cut, gone, resized = (shutil.copytree(tiny.text, tmp_path / name) for name in names[1:])
    path = cut / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (gone / "model.safetensors").unlink()
    config = json.loads((resized / "config.json").read_text())
    (resized / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    adapter = shutil.copytree(tiny.adapter("text"), tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace("layers", "blocks"): value for name, value in tensors.items()}, adapter / "adapter_model.safetensors")
    judges = {name: {"model": {"name": str(folder)}} for name, folder in zip(names[1:], (cut, gone, resized), strict=True)}
    judges["first"] = {"model": {"name": str(tiny.text)}}
    judges["renamed"] = {"model": {"name": str(tiny.judge("text")), "adapter": str(adapter)}}
    with pytest.raises(LoreError) as error:
        trained_with = {"order": "reason_first", "detail": "name", "max_prompt_tokens": 512}
        run(evaluation("judged", data, judges=judges, prompt=trained_with))
    told = str(error.value)
    assert told.startswith("dry pass of evaluate: 4 problems were found"), told
    assert f"judges.renamed: model.adapter {adapter} does not fit" in told
    assert f"judges.cut: {path} cannot be read" in told
    assert f"judges.gone: model.name {gone} has no model.safetensors" in told
    assert f"judges.resized: model.name {resized}: its weight files and its config.json do not belong together" in told


def test_a_budget_beyond_the_model_is_no_problem_while_the_prompts_are_short(tiny, run):
    data = {"path": str(tiny.pairs), "rubric": "shop", "split": "test"}
    prompt = {"order": "answer_only", "detail": "name", "max_prompt_tokens": 2048}
    judges = {"good": {"model": {"name": str(tiny.text)}}}
    assert run(evaluation("budget", data, judges=judges, prompt=prompt, test_limit=8)).is_done
    with pytest.raises(LoreError, match=r"model: the longest prompt with an answer of 1,000 tokens takes"):
        run(pooling("pool", tiny.text, data, prompt=prompt | {"order": "reason_first"}, max_tokens=1000))


# Disk


def test_a_full_disk_stops_before_step_0(tiny, run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=300_000))
    with pytest.raises(LoreError) as error:
        run(tiny.recipe("full-disk", model="text", steps=8, save_every=2))
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny.text).parameters())
    told = str(error.value)
    # keep_checkpoints 2: the third is written before the first is deleted. Each holds weights and two moments in float32.
    # Beside them lie the tokenizer, and configs, random states and logs for which there is a bound.
    tokenizer = sum(path.stat().st_size for path in tiny.text.glob("*token*")) + (tiny.text / "chat_template.jinja").stat().st_size
    beside = tokenizer + 200_000 + 32_000 + 9 * 4_000
    needed = (3 * 12 + 4) * parameters + 3 * beside + tokenizer
    assert f"needs {size(needed)} for 3 checkpoints (weights {size(4 * parameters)}" in told
    assert "Free some space, or lower train.keep_checkpoints, or set LORE_RUNS to a larger disk." in told
    assert "its file system has 300 kB free" in told
    assert nothing_is_left("full-disk")
    assert run(tiny.recipe("small", model="text", lora={}, **FEW)).is_done  # an adapter without checkpoints has room


def test_space_that_a_resumed_run_frees_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "a").write_bytes(bytes(600))
    check_room(tmp_path, 1500, "a file", ["delete something"], replaced=("checkpoints",))
    with pytest.raises(LoreError, match="needs 1.5 kB for a file, and its file system has 1 kB free"):
        check_room(tmp_path, 1500, "a file", ["delete something"])
    with pytest.raises(LoreError, match="needs 2 TB"):
        check_room(tmp_path / "not" / "there", 2 * 10**12, "a file", ["delete something"])


@pytest.mark.parametrize("lora", [None, {}])
def test_what_the_check_asks_for_is_enough(tiny, run, monkeypatch, lora):
    """An upper bound of all files that a run leaves, and of the same size."""
    asked = []
    monkeypatch.setattr("lore.train.common.checkpoint.check_room", lambda folder, needed, *_, **__: asked.append(needed))
    folder = run(tiny.recipe("room", model="text", lora=lora, steps=4, save_every=2, keep_checkpoints=2, log_every=1))
    files = [path for name in ("checkpoints", "model") for path in (folder / name).rglob("*") if path.is_file()]
    taken = sum(path.stat().st_size for path in files)
    print(f"asked {asked[0]:,}, taken {taken:,} bytes in {len(files)} files")
    assert taken <= asked[0] < taken + 2 * 300_000  # two checkpoints, each with a bound for its small files


@pytest.mark.parametrize("limit", [20_000, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (150_000, 400_000))])
def test_a_disk_that_fills_during_training_is_no_traceback(tiny, tmp_path, limit):
    """A limit for the size of a file stands for a full disk: torch and safetensors report both in the same way."""
    path = tmp_path / "full.yaml"
    path.write_text(tiny.recipe("full", model="text", steps=2, save_every=1))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import lore.train.common.trainer as t\n"
        "from lore.run.runner import run_command; train = t.train\n"
        "def limited(*a, **k):\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY)); return train(*a, **k)\n"
        "import lore.train.sft.sft as s; s.train = limited\n"
        "sys.exit(run_command([sys.argv[1]]))"
    )
    environment = os.environ | {"LORE_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "could not be written: " in done.stderr and "Traceback" not in done.stderr
    assert "Free some space or raise the quota. Then run the same command again" in " ".join(done.stderr.split())


def test_sizes_are_those_of_the_files(tiny, run):
    folder = run(tiny.recipe("sizes", model="text", steps=2, save_every=2))
    weights, optimizer = saved_bytes(load_model(ModelSection(name=str(tiny.text)), device="cpu"), None)
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    assert weights == pytest.approx((checkpoint / "model.safetensors").stat().st_size, rel=0.05)
    assert optimizer == pytest.approx((checkpoint / "optimizer.pt").stat().st_size, rel=0.05)
