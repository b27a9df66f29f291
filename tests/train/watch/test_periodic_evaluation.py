"""The probe on tiny real models in real trainers: training is untouched, resumption, the best weights, two processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from conftest import ROOT, needs_deepspeed
from peft import LoraConfig
from safetensors.torch import load_file
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from lore.codec.prompt import PromptFormat, render
from lore.data.pair_source import PairSource
from lore.data.parquet import read_pairs
from lore.data.section import JudgedDataSection
from lore.engines.chat import prompt_text
from lore.engines.config import ModelSection
from lore.engines.engine import Sampling
from lore.engines.loading import load_model, load_processor
from lore.engines.transformers import TransformersEngine
from lore.judge.card import read_card
from lore.rewards.config import RewardsSection
from lore.rewards.reward import Rewards
from lore.rubric.rubric import load_rubric
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.train.common.checkpoint import COMPLETE
from lore.train.common.trainer import Recorder, train
from lore.train.judge.collator import PhotoCollator
from lore.train.judge.rows import sft_row, takes_photos
from lore.train.watch import attach as watching
from lore.train.watch import callback as probe_module
from lore.train.watch.callback import ProbeCallback, share_of
from lore.train.watch.collapse_rules import RECORDED
from lore.train.watch.config import WatchSection
from lore.train.watch.policy_engine import PolicyEngine, policy

CARD = {"renderer_hash": "r", "rubric": "shop", "prompt": {}, "base": None}
RUBRIC = load_rubric("shop")
FMT = PromptFormat("answer_only", "name", max_prompt_tokens=256)
KINDS = ["text", "vision"]
SECTION = WatchSection(every=2, pairs=6, samples=2)


def loaded(tiny, kind: str):
    section = ModelSection(name=str(getattr(tiny, kind)))
    return load_model(section, device="cpu", for_training=True), load_processor(section)


def options(folder: RunFolder, **more) -> dict:
    return {
        "output_dir": str(folder / "checkpoints"),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "max_steps": 3,
        "lr_scheduler_type": "constant",
    } | more


def sft(tiny, kind: str, folder: RunFolder, lora: bool = True, **more) -> tuple[SFTTrainer, object]:
    model, processor = loaded(tiny, kind)
    pairs = list(read_pairs(tiny.pairs, split="train", limit=24))
    fmt = FMT if kind == "vision" else PromptFormat("answer_only", "name", photo=False, max_prompt_tokens=256)
    rows = [sft_row(pair, RUBRIC, fmt, processor) for pair in pairs]
    columns = ["prompt", "completion", "images"] if kind == "vision" else ["input_ids", "labels"]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**options(folder, max_length=None, **more)),
        train_dataset=datasets.Dataset.from_list([{name: row[name] for name in columns} for row in rows]),
        processing_class=processor,
        data_collator=PhotoCollator(processor) if kind == "vision" else None,
        peft_config=LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )
    return trainer, processor


def longer(completions, **_) -> list[float]:
    return [float(len(text) % 7) for text in completions]


def grpo(tiny, kind: str, folder: RunFolder, lora: bool = True, **more) -> tuple[GRPOTrainer, object]:
    model, processor = loaded(tiny, kind)
    rows = []
    for pair in read_pairs(tiny.pairs, split="train", limit=8):
        text, _ = prompt_text(
            processor, render(pair, RUBRIC, PromptFormat("answer_only", "name", photo=False), tokenizer=processor)
        )
        rows.append({"prompt": text})
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=longer,
        args=GRPOConfig(**options(folder, num_generations=4, max_completion_length=8, temperature=0.9, **more)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=processor,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )
    return trainer, processor


def dpo(tiny, kind: str, folder: RunFolder, lora: bool = True, **more) -> tuple[DPOTrainer, object]:
    model, processor = loaded(tiny, kind)
    fmt = PromptFormat("answer_only", "name", photo=False)
    rows = []
    for pair in read_pairs(tiny.pairs, split="train", limit=8):
        text, _ = prompt_text(processor, render(pair, RUBRIC, fmt, tokenizer=processor))
        wrong = next(tier for tier in RUBRIC.tier_ids if tier != pair.label)
        rows.append({"prompt": text, "chosen": f"<verdict>{pair.label}</verdict>", "rejected": f"<verdict>{wrong}</verdict>"})
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**options(folder, **more)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=processor,
        peft_config=LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )
    return trainer, processor


def watched(tiny, trainer, processor, folder: RunFolder, section: WatchSection = SECTION, **more) -> ProbeCallback:
    pairs = list(read_pairs(tiny.pairs, split="test", limit=8))
    kwargs = {"title": "watched", "max_tokens": 8, "card": CARD} | more
    callback = ProbeCallback(section, folder, pairs, RUBRIC, FMT, processor, 7, **kwargs)
    callback.trainer = trainer
    trainer.add_callback(callback)
    return callback


def start(trainer, folder: RunFolder) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    train(trainer, Recorder(folder, "test", keep=4, recorded=("loss", "grad_norm", *RECORDED)), folder)


def logged(folder: RunFolder) -> list[dict]:
    return [line for line in folder.metrics() if "loss" in line]


def probes(folder: RunFolder) -> list[dict]:
    return [line for line in folder.metrics() if "probe" in line]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize(
    "make, kind, lora",
    [
        (sft, "text", False),
        (sft, "vision", True),
        (grpo, "text", True),
        (grpo, "vision", False),
        (dpo, "text", True),
    ],
)
def test_training_is_the_same_with_and_without_a_watch(tiny, tmp_path, kind, make, lora):
    alone, beside = RunFolder(tmp_path / "alone"), RunFolder(tmp_path / "beside")
    trainer, _ = make(tiny, kind, alone, lora)
    start(trainer, alone)
    trainer, processor = make(tiny, kind, beside, lora)
    callback = watched(tiny, trainer, processor, beside, WatchSection(every=1, pairs=3, samples=2))
    start(trainer, beside)
    assert logged(alone) == logged(beside)
    assert [line["step"] for line in probes(beside)] == [0, 1, 2, 3]
    first = probes(beside)[0]["probe"]
    assert first["entropy"] > 0 and 0 < first["length"] <= 8
    summary = callback.finish(trainer)
    assert summary["best_step"] == callback.watch.best_step
    assert read_card(beside / "model") == CARD


@pytest.mark.parametrize("kind", KINDS)
def test_a_watch_is_a_function_of_the_weights_and_the_seed(tiny, tmp_path, kind):
    found = []
    for name in ("one", "two"):
        folder = RunFolder(tmp_path / name)
        trainer, processor = sft(tiny, kind, folder, learning_rate=0.0)
        torch.manual_seed(len(found))
        watched(tiny, trainer, processor, folder)
        start(trainer, folder)
        found += [line["probe"] for line in probes(folder)]
    assert len(found) == 6 and all(probe == found[0] for probe in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [sft, grpo])
def test_the_engine_reads_a_policy_as_it_reads_a_model(tiny, tmp_path, kind, make):
    """GRPO replaces the model's forward: generation and scores have to stay those of the plain model, photos included."""
    trainer, processor = make(tiny, kind, RunFolder(tmp_path), lora=False)
    pairs = [pair for pair in read_pairs(tiny.pairs, split="test") if pair.image][:3]
    probe = watched(tiny, trainer, processor, RunFolder(tmp_path))
    prompts = [probe._messages(pair) for pair in pairs]
    plain = TransformersEngine(loaded(tiny, kind)[0].eval(), load_processor(ModelSection(name=str(getattr(tiny, kind)))), RUBRIC)
    sampling = Sampling(0.9, 1.0, 12, 2, 5)
    trainer.model.train()
    trainer.model.lm_head.eval()
    with policy(trainer) as model:
        engine = PolicyEngine(model, probe.processor, RUBRIC)
        answers = engine.generate(prompts, sampling)
        assert answers == plain.generate(prompts, sampling)
        assert abs(engine.score(prompts) - plain.score(prompts)).max() < 1e-6
        total, count = engine.entropy([(prompts[0], answers[0][0])], 0.9)
        assert 0 < total / count < torch.tensor(float(len(engine.tokenizer))).log()
        assert engine.longest(prompts) == max(row[0].prompt_tokens for row in answers)
        assert not any(module.training for module in model.modules())
    assert trainer.model.training and not trainer.model.lm_head.training


def test_entropy_is_that_of_the_tokens_that_were_sampled(tiny, tmp_path):
    trainer, processor = sft(tiny, "text", RunFolder(tmp_path), lora=False)
    pair = next(read_pairs(tiny.pairs, split="test"))
    prompt = render(pair, RUBRIC, PromptFormat("answer_only", "name", photo=False), tokenizer=processor)
    with policy(trainer) as model:
        engine = PolicyEngine(model, processor, RUBRIC)
        ((answer, *_),) = engine.generate([prompt], Sampling(0.7, 1.0, 10, 2, 1))
        total, count = engine.entropy([(prompt, answer)], 0.7)
        ids = processor(prompt_text(processor, prompt)[0], add_special_tokens=False)["input_ids"]
        expected, sampled = 0.0, engine._ids[id(answer)]
        for number in range(len(sampled)):  # one token at a time, as they were drawn
            logits = model(input_ids=torch.tensor([ids + sampled[:number]])).logits[0, -1] / 0.7
            expected += torch.distributions.Categorical(logits=logits).entropy().item()
    assert count == len(sampled) == answer.tokens
    assert total == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_comes_back(tiny, tmp_path, kind):
    folder = RunFolder(tmp_path)
    trainer, processor = sft(tiny, kind, folder, gradient_checkpointing=True)
    watched(tiny, trainer, processor, folder)
    start(trainer, folder)
    assert len(probes(folder)) == 3 and trainer.model.is_gradient_checkpointing


def scripted(monkeypatch, values: dict[int, float], **more) -> None:
    """Measured values by the number of the watch's step, so that a test decides which step is best."""
    weigh = probe_module.Watch.weigh

    def with_value(self, step, metrics, training):
        return weigh(self, step, metrics | {"pass_at_1": values.get(step, 0.0)} | more.get(f"at_{step}", {}), training)

    monkeypatch.setattr(probe_module.Watch, "weigh", with_value)


def test_the_best_weights_are_kept_and_can_be_loaded(tiny, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    scripted(monkeypatch, {0: 0.1, 1: 0.5, 2: 0.3, 3: 0.2})
    trainer, processor = sft(tiny, "text", folder, lora=False, save_strategy="steps", save_steps=1)
    callback = watched(tiny, trainer, processor, folder, WatchSection(every=1, pairs=3, samples=2))
    start(trainer, folder)
    assert callback.finish(trainer) == {"best_step": 1, "pass_at_1": 0.5}
    assert [path.name for path in folder.path.glob("best-*")] == ["best-1"]
    model, at_best = weights(folder / "model"), weights(folder / "checkpoints" / "checkpoint-1")
    last = trainer.model.state_dict()
    assert all(torch.equal(model[name], at_best[name]) for name in at_best)
    assert any(not torch.equal(model[name], last[name]) for name in model)
    section = ModelSection(name=str(folder / "model"))
    engine = TransformersEngine(load_model(section, device="cpu"), load_processor(section), RUBRIC)
    pair = next(read_pairs(tiny.pairs, split="test"))
    prompt = render(pair, RUBRIC, PromptFormat("answer_only", "name", photo=False), tokenizer=engine.processor)
    assert engine.score([prompt]).shape == (1, 4)
    assert not list(folder.path.glob("*.part"))


def resume_once(tiny, folder: RunFolder, steps: int, section: WatchSection) -> ProbeCallback:
    trainer, processor = sft(tiny, "text", folder, save_strategy="steps", save_steps=2, max_steps=steps)
    callback = watched(tiny, trainer, processor, folder, section)
    start(trainer, folder)
    callback.finish(trainer)
    return callback


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tiny, tmp_path, monkeypatch):
    """Step 3 is the best of a run that dies at step 3; it goes on from step 2, where step 1 is the best and must be there."""
    scripted(monkeypatch, {0: 0.1, 1: 0.5, 2: 0.2, 3: 0.9, 4: 0.3})
    section = WatchSection(every=1, pairs=3, samples=2)
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    resume_once(tiny, whole, 4, section)
    trainer, processor = sft(tiny, "text", killed, save_strategy="steps", save_steps=2, max_steps=4)
    callback = watched(tiny, trainer, processor, killed, section)
    keep = callback._keep

    def die(step):
        keep(step)
        if step == 3:
            raise KeyboardInterrupt

    callback._keep = die
    with pytest.raises(KeyboardInterrupt):
        start(trainer, killed)
    assert {path.name for path in killed.path.glob("best-*")} == {"best-1", "best-3"}
    again = resume_once(tiny, killed, 4, section)
    assert again.watch.best_step == 3
    assert whole.metrics_path.read_bytes() == killed.metrics_path.read_bytes()
    one, other = weights(whole / "model"), weights(killed / "model")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_dies_while_its_first_weights_are_written_starts_over(tiny, tmp_path):
    folder = RunFolder(tmp_path)
    section = WatchSection(every=1, pairs=3, samples=2)
    trainer, processor = sft(tiny, "text", folder)
    callback = watched(tiny, trainer, processor, folder, section)

    def die(step):
        (folder / f".best-{step}.part").mkdir()
        raise KeyboardInterrupt

    callback._keep = die
    with pytest.raises(KeyboardInterrupt):
        start(trainer, folder)
    assert not folder.metrics()
    again = resume_once(tiny, folder, 2, section)
    assert again.watch.steps == [0, 1, 2] and not list(folder.path.glob("*.part"))


def test_best_weights_that_are_gone_stop_the_resumed_run(tiny, tmp_path):
    section = WatchSection(every=1, pairs=3, samples=2)
    folder = RunFolder(tmp_path)
    callback = resume_once(tiny, folder, 2, section)
    (folder / f"best-{callback.watch.best_step}").rename(tmp_path / "elsewhere")
    with pytest.raises(LoreError, match="was best at step .* is gone"):
        resume_once(tiny, folder, 2, section)


def test_a_collapsed_run_stops_and_keeps_its_best_weights(tiny, tmp_path, monkeypatch, capsys):
    whole = {"format_failures": 0.0, "truncated": 0.0, "length": 40.0, "top_share": 0.5, "top_tier": "L4"}
    constant = whole | {"top_share": 1.0, "top_tier": "L1"}
    scripted(monkeypatch, {0: 0.1, 2: 0.5, 4: 0.9}, at_0=whole, at_2=whole, at_4=constant)
    folder = RunFolder(tmp_path)
    trainer, processor = grpo(tiny, "text", folder, max_steps=9, save_strategy="steps", save_steps=4)
    callback = watched(tiny, trainer, processor, folder)
    start(trainer, folder)
    assert trainer.state.global_step == 4
    summary = callback.finish(trainer)
    assert summary["best_step"] == 2 and summary["stopped"].startswith("constant tier: 100% of the verdicts are L1")
    assert probes(folder)[-1]["stopped"] == summary["stopped"]
    assert "stopped at step 4: constant tier" in capsys.readouterr().out
    assert "reward" in probes(folder)[-1]["training"] and "zero_spread" in probes(folder)[-1]["training"]
    before = folder.metrics_path.read_bytes()
    trainer, processor = grpo(tiny, "text", folder, max_steps=9, save_strategy="steps", save_steps=4)
    again = watched(tiny, trainer, processor, folder)
    assert (folder / "checkpoints" / "checkpoint-4" / COMPLETE).is_file()
    start(trainer, folder)
    assert again.finish(trainer) == summary and trainer.state.global_step <= 5
    assert folder.metrics_path.read_bytes().startswith(before)


def test_rewards_of_the_probe_stand_beside_its_metrics(tiny, tmp_path):
    def rewards(pairs, groups):
        assert len(pairs) == len(groups) == 6 and len(groups[0]) == 2
        return {"reward": 0.25, "format": sum(answer.tokens for group in groups for answer in group)}

    folder = RunFolder(tmp_path)
    trainer, processor = sft(tiny, "text", folder)
    watched(tiny, trainer, processor, folder, rewards=rewards)
    start(trainer, folder)
    assert probes(folder)[0]["probe"]["reward"] == 0.25 and probes(folder)[0]["probe"]["reward/format"] > 0


def test_without_a_watch_the_newest_weights_are_the_model(tiny, tmp_path):
    folder = RunFolder(tmp_path)
    trainer, processor = sft(tiny, "text", folder, lora=False)
    callback = watched(tiny, trainer, processor, folder, WatchSection(every=0))
    start(trainer, folder)
    assert callback.finish(trainer) == {} and not probes(folder)
    saved = weights(folder / "model")
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in saved.items())


def test_a_probe_without_labels_is_an_error(tiny, tmp_path):
    with pytest.raises(LoreError, match="no labeled pair"):
        ProbeCallback(SECTION, RunFolder(tmp_path), [], RUBRIC, FMT, None, 0, title="", max_tokens=8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_has_photos_for_the_judge_and_the_rewards_or_for_neither(tiny, kind):
    pairs = list(read_pairs(tiny.pairs, split="test", limit=64))
    assert any(pair.image for pair in pairs)
    section, data = WatchSection(pairs=64, split="test"), JudgedDataSection(path=str(tiny.pairs), rubric="shop")
    probe = watching.probe_pairs(section, PairSource(data, None), photos=takes_photos(loaded(tiny, kind)[1], FMT))
    assert [pair.image is None for pair in probe] == [kind == "text" or pair.image is None for pair in pairs]


def test_calibration_is_no_part_of_the_probe_s_reward_which_knows_no_probabilities(tiny):
    pairs = list(read_pairs(tiny.pairs, split="test", limit=2))
    sections = [RewardsSection(), RewardsSection(calibration=5.0)]
    without, with_it = [Rewards(section, RUBRIC, FMT) for section in sections]
    groups = [[without.read(f"<verdict>{pair.label}</verdict>", 5), without.read("I do not know", 3)] for pair in pairs]
    found = watching.mean_rewards(with_it)(pairs, groups)
    assert found == watching.mean_rewards(without)(pairs, groups) and "calibration" not in found


def test_every_process_has_equally_many_pairs():
    assert [share_of("abcde", rank, 2) for rank in (0, 1)] == [["a", "c", "e"], ["b", "d", "a"]]
    assert [share_of("a", rank, 3) for rank in (0, 1, 2)] == [["a"], ["a"], ["a"]]


def test_the_report_holds_strangers_texts_as_text_alone(tiny, tmp_path):
    folder = RunFolder(tmp_path)
    trainer, processor = grpo(tiny, "text", folder)
    callback = watched(tiny, trainer, processor, folder)
    evil = '<script>alert(1)</script><img src=x onerror="alert(1)">'
    for pair in callback.pairs:
        pair.query = pair.title = pair.pair_id = evil
    callback.title = evil
    start(trainer, folder)
    callback.finish(trainer)
    page = (folder / "report.html").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'; style-src 'unsafe-inline'" in page and "http://" not in page and "https://" not in page
    assert page.count("<article") == 6 and page.count("<figure>") >= 8
    assert len(re.findall('<th scope="row">', page)) == 3
    assert f"best step {callback.watch.best_step}" in page
    answers = json.loads((folder / "answers.json").read_text())
    assert answers["step"] == 3 and len(answers["pairs"]) == 6 and len(answers["pairs"][0]["answers"]) == 2


LAUNCHED = """
import sys
from pathlib import Path
import trl
sys.path[:0] = {paths!r}
{patch}
from types import SimpleNamespace
from lore.run.run_folder import RunFolder
from lore.support.processes import say
from lore.run.devices import device_arguments, leave, settle_devices
settle_devices()
import test_periodic_evaluation
make = getattr(test_periodic_evaluation, sys.argv[1])
folder = RunFolder(sys.argv[2])
tiny = SimpleNamespace(pairs=Path(sys.argv[3]), text=Path(sys.argv[4]), vision=Path(sys.argv[5]))
given = device_arguments()
plain = test_periodic_evaluation.options
without = lambda found: {{key: value for key, value in found.items() if key != "use_cpu"}}
test_periodic_evaluation.options = lambda *a, **k: without(plain(*a, **k)) | given | {{"max_steps": 4}}
trainer, processor = make(tiny, sys.argv[6], folder, lora=sys.argv[7] == "lora")
section = test_periodic_evaluation.WatchSection(every=2, pairs=5, samples=2)
callback = test_periodic_evaluation.watched(tiny, trainer, processor, folder, section)
test_periodic_evaluation.start(trainer, folder)
summary = callback.finish(trainer)
accelerator = trainer.accelerator
Path(f"{{sys.argv[2]}}-{{accelerator.process_index}}").write_text(f"{{accelerator.num_processes}} {{summary}}")
leave(0)
"""
FSDP = """
import accelerate.state, torch
from accelerate.utils import DistributedType
accelerate.state.PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
accelerate.state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
import lore.run.devices
lore.run.devices.device_arguments = lambda: {"ddp_backend": "gloo"}
lore.run.devices.settle_devices = lambda: None
"""


@pytest.mark.parametrize(
    "config, make, model, lora",
    [
        pytest.param("cpu2", "sft", "vision", "lora", marks=pytest.mark.long),
        pytest.param("zero2", "sft", "text", "whole", marks=pytest.mark.long),
        pytest.param("zero2", "grpo", "text", "lora", marks=pytest.mark.slow),
        pytest.param("zero3", "grpo", "text", "lora", marks=pytest.mark.long),
        pytest.param("fsdp2", "sft", "text", "whole", marks=pytest.mark.long),
    ],
)
def test_two_processes_watch_together(tiny, tmp_path, config, make, model, lora):
    if config.startswith("zero"):
        needs_deepspeed()
    script = tmp_path / "script.py"
    paths = [str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT / "tests" / "train")]
    script.write_text(LAUNCHED.format(paths=paths, patch=FSDP if config == "fsdp2" else ""))
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"]
    command += ["--config_file", f"launch/accelerate/{config}.yaml", "--main_process_port", "0", str(script)]
    command += [make, tmp_path / "run", tiny.pairs, tiny.text, tiny.vision, model, lora]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if config == "cpu2":
        environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    said = [(tmp_path / f"run-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("2 {'best_step': ")
    folder = RunFolder(tmp_path / "run")
    assert [line["step"] for line in probes(folder)] == [0, 2, 4]
    assert len(json.loads((folder / "answers.json").read_text())["pairs"]) == 5
    assert weights(folder / "model") and (folder / "report.html").is_file()
