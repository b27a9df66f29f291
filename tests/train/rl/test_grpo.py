"""Stage grpo on tiny trained judges, text and photos: what a step learns from, and that the rest is TRL's own."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from run_names import undeclared
from safetensors.torch import load_file
from trl import GRPOTrainer

from lore.codec.judgement import FormatFailure, render_answer
from lore.codec.prompt import PromptFormat
from lore.codec.verdict_tokens import with_verdict_prefix
from lore.config.stages import load_recipe
from lore.data.pair_source import PairSource
from lore.data.parquet import PairWriter, read_pairs
from lore.data.section import JudgedDataSection
from lore.engines.chat import prompt_text
from lore.engines.config import ModelSection
from lore.engines.loading import load_model, load_processor
from lore.engines.transformers import TransformersEngine
from lore.rubric.rubric import load_rubric
from lore.run.input_hashes import input_fingerprints
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.train.judge.rows import gold, sft_row
from lore.train.rl.grpo import GRPO, prepare
from lore.train.rl.length_bucketing import bucket_by_length
from lore.train.rl.sft_replay import replay_rows_per_pass
from lore.train.watch.attach import probe_pairs
from lore.train.watch.config import WatchSection

RUBRIC = load_rubric("shop")
FMT = PromptFormat("reason_first", "name", max_prompt_tokens=512)


@pytest.fixture
def made(tiny, runs, tmp_path):
    """Builds the trainer of a recipe: made("text", grpo={...}) -> (setup, trainer), in training mode, before step 0."""

    def build(kind: str = "text", run: str = "grpo", adapter: bool = False, **sections):
        path = tmp_path / f"{run}.yaml"
        path.write_text(tiny.align(run, tiny.judge(kind), adapter=tiny.adapter(kind) if adapter else None, **sections))
        return ready(path)

    return build


def ready(path):
    """(setup, trainer) of a recipe's file, in training mode, before step 0."""
    recipe = load_recipe(path)
    folder = RunFolder.of(recipe)
    folder.open(recipe)
    setup, trainer = prepare(recipe, folder)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return setup, trainer


def asked(setup, step: int = 0) -> list[dict]:
    """What TRL hands the trainer at a step: each of its prompts once per answer."""
    return [{"prompt": "", "row": int(row)} for row in setup.order[step] for _ in range(setup.recipe.rollout.group)]


def rows(batch: dict) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and mask of each row of a pass, prompt and answer together."""
    both = [torch.cat([batch[f"prompt_{part}"], batch[f"completion_{part}"]], dim=1) for part in ("ids", "mask")]
    return zip(*both, strict=True)


def gradients(trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def loss_and_gradients(trainer, batch: dict) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.item(), gradients(trainer)


def plain_logps(trainer, batch: dict) -> torch.Tensor:
    """Log-probabilities of the answers' tokens by the model's own logits."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float() / trainer.temperature
    kept = batch["completion_ids"].shape[1]
    return logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)[:, -kept:]


@pytest.mark.slow
@pytest.mark.parametrize("kind, norm", [("text", "model.norm"), ("vision", "text_model.norm")])
def test_whole_layers_beside_an_adapter_train_in_float32_where_the_model_computes_in_bfloat16(tiny, runs, tmp_path, kind, norm):
    path = tmp_path / "grpo.yaml"
    lora = {"targets": ".*(text_model|layers).*q_proj", "modules_to_save": ["embed_tokens", norm, "lm_head"]}
    path.write_text(
        tiny.align(
            "grpo",
            tiny.judge(kind),
            lora=lora,
            model={"dtype": "bfloat16"},
            rewards={"calibration": 0.5},  # reads tier probabilities between the rollouts
            train={"lr": 1e-6, "save_every": 1},
            watch={"every": 1, "pairs": 4, "samples": 2, "path": str(tiny.pairs), "split": "test", "preflight_prompts": 4},
        )
    )
    folder = run_recipe(path)
    assert undeclared(folder.path) == []
    saved = load_file(folder / "checkpoints" / "checkpoint-3" / "adapter_model.safetensors")
    whole = {name: weight for name, weight in saved.items() if "lora_" not in name}
    assert len(whole) == 3 and all(weight.dtype == torch.float32 for weight in whole.values())
    # Such steps are far below what bfloat16 can tell apart.
    assert all((weight != weight.bfloat16().float()).any() for weight in whole.values())
    gaps = [line["sampling/sampling_logp_difference/mean"] for line in folder.metrics() if "loss" in line]
    assert gaps and max(gaps) < 0.05


@pytest.mark.parametrize(
    "kind, lora, adapter",
    [
        pytest.param("text", None, False, id="text, every weight", marks=pytest.mark.long),
        pytest.param("text", None, True, id="text, an adapter goes on"),
        pytest.param("vision", {"targets": "all-linear"}, False, id="photos, new lora", marks=pytest.mark.long),
        pytest.param("vision", None, True, id="photos, an adapter goes on"),
    ],
)
def test_the_stage_runs_with_every_addition_and_says_what_it_did(tiny, runs, tmp_path, kind, lora, adapter):
    path = tmp_path / "grpo.yaml"
    path.write_text(
        tiny.align(
            "grpo",
            tiny.judge(kind),
            adapter=tiny.adapter(kind) if adapter else None,
            lora=lora,
            dynamic={},
            guided={"share": 0.5},
            replay={"rows": 4},
            grpo={"kl": 0.01},
            watch={"every": 3, "pairs": 4, "samples": 2, "path": str(tiny.pairs), "split": "test", "preflight_prompts": 4},
        )
    )
    folder = run_recipe(path)
    lines = folder.metrics()
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    keys = {"reward", "rewards/verdict/mean", "rewards/format/mean", "frac_reward_zero_std", "entropy", "kl", "sft_loss"}
    keys |= {"rollout/right", "rollout/tokens", "rollout/groups_with_spread", "rollout/share_with_spread", "rollout/truncated"}
    keys |= {"dynamic/foreseen", "dynamic/extra_groups", "guided/groups", "guided/solved", "clip_ratio/region_mean"}
    keys |= {"completions/mean_length", "completions/clipped_ratio"}
    for line in steps:
        assert keys <= line.keys(), keys - line.keys()
        assert all(np.isfinite(line[key]) for key in keys)
    watches = [line for line in lines if "probe" in line]
    assert [line["step"] for line in watches] == [0, 3]
    assert watches[-1]["training"]["gap"] < 1e-4 * (50 if kind == "vision" else 1)
    name = "adapter_model.safetensors" if lora or adapter else "model.safetensors"
    assert (folder / "model" / name).is_file() and (folder / "model" / "lore.json").is_file()
    if adapter:
        before, after = load_file(tiny.adapter(kind) / name), load_file(folder / "model" / name)
        assert before.keys() == after.keys()


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_the_trainer_reads_prompts_as_the_engine_does_alone_and_in_a_batch(made, kind):
    setup, trainer = made(kind)
    engine = TransformersEngine(trainer.model, load_processor(setup.recipe.model), RUBRIC)
    rows = list(range(12))
    photos = [bool(setup.prompts.pairs[row].image) for row in rows]
    assert any(photos) == (kind == "vision") and not all(photos)
    together = trainer._tokenize_prompts([setup.prompts.messages(row) for row in rows])[0]
    for row, ids in zip(rows, together, strict=True):
        messages = setup.prompts.messages(row)
        theirs = engine._inputs([prompt_text(engine.processor, messages)])["input_ids"][0].tolist()
        assert list(ids) == theirs == list(trainer._tokenize_prompts([messages])[0][0])


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_with_every_addition_off_a_run_is_trls_own(made, tiny, kind, monkeypatch):
    tiny.judge(kind)  # trained before anything is replaced
    # The same sums in another order differ by rounding, which Adam makes steps of; see the test of the shorter passes.
    monkeypatch.setattr("lore.train.rl.grpo.bucket_by_length", lambda passes, *_: passes)
    monkeypatch.setattr("lore.train.common.shared_prefix.log_probs_at_labels", lambda *_: None)
    off = {"grpo": {"advantage_clamp": None}, "train": {"shared_prefix": False}}
    setup, ours = made(kind, **off)
    ours.train()
    other, _ = made(kind, run="trl", **off)

    def reward(completions, completion_ids, row, **_) -> list[float]:
        ends = plain.eos_token_ids
        texts = [one[0]["content"] for one in completions]
        both = zip(texts, completion_ids, strict=True)
        answers = [other.rewards.read(text, len(ids), truncated=ids[-1] not in ends) for text, ids in both]
        return other.rewards.totals(other.rewards.parts(answers, [other.prompts.pairs[number] for number in row])).tolist()

    class Plain(GRPOTrainer):
        """TRL's trainer; a dataset would turn photos inside messages into something else, so they are put in here."""

        def _generate_and_score_completions(self, inputs):
            shown = [{"prompt": other.prompts.messages(one["row"]), "row": one["row"]} for one in inputs]
            return super()._generate_and_score_completions(shown)

        def _tokenize_prompts(self, prompts):
            ids, images, fields = super()._tokenize_prompts(prompts)
            return ids, None if images is None else [one or [] for one in images], fields

    model = load_model(other.recipe.model, device="cpu", for_training=True)
    plain = Plain(
        model=model,
        reward_funcs=reward,
        args=other.args,
        train_dataset=Dataset.from_dict({"prompt": [""] * other.order.size, "row": other.order.reshape(-1).tolist()}),
        processing_class=load_processor(other.recipe.model),
    )
    plain.train()
    clocks = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "epoch", "total_flos"}
    logs = []
    for trainer in (ours, plain):
        logs.append(
            [{k: v for k, v in line.items() if k not in clocks and "/reward/" not in k} for line in trainer.state.log_history]
        )
    assert [line.get("step") for line in logs[0]] == [1, 2, 3, 3]
    for mine, theirs in zip(*logs, strict=True):
        shared = {key for key in theirs if not key.startswith("rewards/")}
        assert {"loss", "reward", "entropy", "grad_norm", "completions/mean_length"} <= shared or "train_loss" in shared
        for key in shared:
            assert mine[key] == pytest.approx(theirs[key], abs=1e-6, nan_ok=True), key
    weights = dict(plain.model.named_parameters())
    for name, weight in ours.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind, loss", [("text", "dapo"), ("vision", "dapo"), ("text", "grpo"), ("text", "bnpo")])
def test_shorter_passes_have_the_loss_and_the_gradients_of_padded_ones(made, monkeypatch, kind, loss):
    guided = {"share": 1.0, "teach": 0.5}
    setup, trainer = made(kind, grpo={"loss": loss}, guided=guided, train={"micro_batch_size": 4})
    trainer.current_gradient_accumulation_steps = 4
    padded = []
    monkeypatch.setattr(
        "lore.train.rl.grpo.bucket_by_length", lambda passes, *how: padded.extend(passes) or bucket_by_length(passes, *how)
    )
    first = trainer._prepare_inputs(asked(setup))
    passes = trainer._buffered_inputs
    assert first is passes[0] and len(passes) == len(padded) == 4

    def width(batch: dict) -> int:
        return batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]

    assert len({width(batch) for batch in padded}) == 1 and sum(map(width, passes)) < sum(map(width, padded))
    assert "tool_mask" in passes[0] and ("num_images" in passes[0]) == (kind == "vision")
    whole = [Counter(tuple(ids[mask.bool()].tolist()) for batch in some for ids, mask in rows(batch)) for some in (passes, padded)]
    assert whole[0] == whole[1]
    total, summed = [], []
    for some in (passes, padded):
        trainer.model.zero_grad()
        losses = [trainer._compute_loss(trainer.model, dict(batch)) for batch in some]
        sum(losses).backward()
        total.append(sum(losses).item())
        summed.append(gradients(trainer))
    assert total[0] == pytest.approx(total[1], abs=1e-6)
    for name, gradient in summed[1].items():
        torch.testing.assert_close(summed[0][name], gradient, atol=1e-6, rtol=1e-4)


def test_dynamic_sampling_replaces_flat_groups_within_its_means_and_asks_no_prompt_twice(made):
    setup, trainer = made(dynamic={"extra": 0.5, "foresee": False}, train={"batch_size": 32})
    rolled = []
    roll = trainer.sample_groups

    def counted(rows, *more):
        groups = roll(rows, *more)
        rolled.append(list(groups))  # the trainer puts others into its own list
        return groups

    trainer.sample_groups = counted
    replaced = 0
    for step in range(3):
        trainer.state.global_step = step
        rolled.clear()
        scheduled = setup.order[step].tolist()
        groups, tally = trainer.choose_groups(scheduled)
        first, second = rolled[0], (rolled[1] if len(rolled) > 1 else [])
        assert [group.row for group in first] == scheduled
        flat = [place for place, group in enumerate(first) if group.spread <= 0.02]
        assert bool(second) == bool(flat)
        assert len(second) == tally.extra <= 4
        assert tally.tokens == sum(group.tokens for group in first + second)
        assert sum(group.tokens for group in second) <= 4 * 4 * 48
        assert len({group.row for group in first + second}) == len(first) + len(second)
        good = [group for group in second if group.spread > 0.02]
        for place, group in enumerate(groups):
            if place not in flat:
                assert group is first[place]
        changed = [place for place in flat if groups[place] is not first[place]]
        assert changed == flat[: len(good)]
        assert [groups[place] for place in changed] == good[: len(flat)]
        replaced += len(changed)
    assert replaced


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_groups_without_spread_are_counted_however_rewards_are_scaled(made, scale):
    setup, trainer = made(grpo={"scale": scale})
    trainer.rewards.totals = lambda parts: np.where(np.arange(len(parts)) < 4, 0.5, np.arange(len(parts)) / len(parts))
    trainer._generate_and_score_completions(asked(setup))
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [0.25]


def test_prompts_that_are_foreseen_to_teach_nothing_give_way_before_anything_is_generated(made):
    setup, trainer = made(dynamic={"extra": 0, "explore": 0.01}, train={"batch_size": 32})
    scheduled = setup.order[0].tolist()
    hopeless = scheduled[:4]
    trainer.choice.seen[hopeless] = (1000.0, 0.0)
    groups, tally = trainer.choose_groups(scheduled)
    rows = [group.row for group in groups]
    assert tally.foreseen >= 4 and tally.extra == 0 and tally.groups == 8
    assert not set(hopeless) & set(rows) and len(set(rows)) == 8


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_groups_that_are_all_wrong_are_begun_with_the_start_of_the_gold_reasoning(made, kind):
    setup, trainer = made(kind, guided={"share": 0.5, "reveal": 0.5}, train={"batch_size": 32})
    rows = list(range(8))
    for row in rows:  # the judge never says this, so each group is all wrong
        pair = setup.prompts.pairs[row]
        pair.label = "L1" if pair.label != "L1" else "L4"
    groups, tally = trainer.choose_groups(rows)
    begun = [group for group in groups if group.given]
    assert 0 < tally.guided == len(begun) <= 4
    for group in groups:
        pair = setup.prompts.pairs[group.row]
        if group.given:
            assert pair.rationale
            answer = render_answer(gold(pair), RUBRIC, FMT, tokenizer=setup.prompts.tokenizer)
            reasoning = setup.prompts.tokenizer(answer[: answer.index("</reason>")], add_special_tokens=False)["input_ids"]
            assert group.given == len(reasoning) // 2
            assert all(ids[: group.given] == reasoning[: group.given] for ids in group.completion_ids)
            start = setup.prompts.tokenizer.decode(reasoning[: group.given])
            assert answer.startswith(start) and all(one.text.startswith(start) for one in group.answers)
            assert all(len(ids) > group.given for ids in group.completion_ids)


def given_batch(made, teach: float):
    """(trainer, batch) of groups that were all begun with gold reasoning."""
    setup, trainer = made(guided={"share": 1.0, "reveal": 0.4, "teach": teach})
    inputs = asked(setup)
    for row in {one["row"] for one in inputs}:
        pair = setup.prompts.pairs[row]
        pair.label = "L1" if pair.label != "L1" else "L4"
    batch = trainer._generate_and_score_completions(inputs)
    assert (batch["completion_mask"] * (1 - batch["tool_mask"])).sum() > 0
    batch["advantages"] = torch.linspace(-1, 1, len(inputs))
    return trainer, batch


def test_given_tokens_carry_no_policy_loss(made):
    trainer, batch = given_batch(made, teach=0)
    loss, found = loss_and_gradients(trainer, batch)
    trainer.model.zero_grad()
    logps = plain_logps(trainer, batch)
    mask = batch["completion_mask"] * batch["tool_mask"]
    by_hand = -((logps - logps.detach()).exp() * batch["advantages"][:, None] * mask).sum() / mask.sum()
    by_hand.backward()
    assert loss == pytest.approx(by_hand.item(), abs=1e-6)
    for name, gradient in gradients(trainer).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
    everything_given = batch | {"tool_mask": torch.zeros_like(batch["tool_mask"])}
    loss, found = loss_and_gradients(trainer, everything_given)
    assert loss == 0 and all(not gradient.any() for gradient in found.values())


def test_given_tokens_are_taught_with_their_weight(made):
    trainer, batch = given_batch(made, teach=0.3)
    loss, found = loss_and_gradients(trainer, batch)
    guided = trainer.recipe.guided.model_copy(update={"teach": 0.0})
    trainer.recipe = trainer.recipe.model_copy(update={"guided": guided})
    without, apart = loss_and_gradients(trainer, batch)
    trainer.model.zero_grad()
    given = batch["completion_mask"] * (1 - batch["tool_mask"])
    taught = -0.3 * (plain_logps(trainer, batch) * given).sum() / given.sum()
    taught.backward()
    assert loss - without == pytest.approx(taught.item(), abs=1e-6)
    for name, gradient in gradients(trainer).items():
        torch.testing.assert_close(found[name] - apart[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["text", "vision"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_sft_term_is_the_models_own_cross_entropy_on_its_rows(made, kind, temperature):
    _, trainer = made(kind, replay={"rows": 8, "weight": 0.5}, rollout={"temperature": temperature})
    batch = trainer.replay(0)
    assert (batch["labels"] != -100).sum() > 50
    plain = trainer.model(**batch).loss
    torch.testing.assert_close(trainer.replay_loss(trainer.model), plain, atol=1e-5, rtol=0)
    again = trainer.replay(1)["input_ids"]
    assert again.shape != batch["input_ids"].shape or (again != batch["input_ids"]).any()


def test_replayed_rows_may_be_fewer_than_passes_and_come_from_all_over_the_file(made):
    setup, trainer = made(replay={"rows": 2, "weight": 0.5, "limit": 32}, train={"micro_batch_size": 2, "steps": 2})
    replay, passes = trainer.replay, trainer.args.gradient_accumulation_steps
    assert (passes, replay.every, replay.size) == (8, 4, 1)
    batches = [replay(number) for number in range(2 * passes)]
    assert [number for number, batch in enumerate(batches) if batch is not None] == [0, 4, 8, 12]
    shown = [tuple(batch["input_ids"][0].tolist()) for batch in batches if batch is not None]
    assert len(set(shown)) == 4 == len(replay.rows)
    told = [pair for pair in read_pairs(trainer.recipe.data.path, limit=32) if pair.rationale]
    first = {tuple(sft_row(pair, RUBRIC, FMT, trainer.processing_class)["input_ids"]) for pair in told[:4]}
    assert not set(shown) <= first

    # Over a step the SFT term is its weight times the mean of its rows.
    trainer.current_gradient_accumulation_steps = passes
    trainer._prepare_inputs(asked(setup))
    trainer.state.global_step = 1
    sums = []
    for trainer.replay in (replay, None):
        with torch.no_grad():
            losses = []
            for trainer._step in range(passes):
                losses.append(trainer._compute_loss(trainer.model, dict(trainer._buffered_inputs[trainer._step])))
        sums.append(sum(losses).item())
    with torch.no_grad():
        mean = torch.stack([trainer.model(**batch).loss for batch in batches[passes:] if batch is not None]).mean().item()
    assert sums[0] - sums[1] == pytest.approx(0.5 * mean, abs=1e-5) and mean > 0.01


@pytest.mark.parametrize("name", ["grpo", "grpo_vl", "ppo"])
@pytest.mark.parametrize("processes", [1, 2, 8, 16])
def test_shipped_recipes_replay_on_any_usual_number_of_processes(name, processes, monkeypatch):
    for module in ("common.trainer", "rl.sft_replay"):
        monkeypatch.setattr(f"lore.train.{module}.world_size", lambda: processes)
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    size, every = replay_rows_per_pass(recipe)
    passes = recipe.train.batch_size // recipe.train.micro_batch_size
    assert size * passes == every * recipe.replay.rows
    with pytest.raises(LoreError, match="cannot share them evenly"):
        replay_rows_per_pass(recipe.model_copy(update={"replay": recipe.replay.model_copy(update={"rows": 48})}))


def test_a_folder_of_pairs_may_be_replayed(tiny, tmp_path):
    path = tmp_path / "grpo.yaml"
    path.write_text(tiny.align("grpo", tmp_path, replay={"path": str(tiny.pairs)}))
    before = input_fingerprints(load_recipe(path))["replay.path"]
    path.write_text(tiny.align("grpo", tmp_path, replay={"path": str(tiny.pairs / "test.parquet")}))
    assert input_fingerprints(load_recipe(path))["replay.path"] != before


def test_the_probe_is_spread_over_the_whole_file(tiny, tmp_path):
    labeled = [pair.pair_id for pair in read_pairs(tiny.pairs, split="train")]
    source = PairSource(JudgedDataSection(path=str(tiny.pairs), rubric="shop"), None)
    for count in (3, 100, 159, 160, 500):
        chosen = [pair.pair_id for pair in probe_pairs(WatchSection(pairs=count, split="train"), source, photos=True)]
        places = [labeled.index(pair_id) for pair_id in chosen]
        assert len(places) == min(count, len(labeled)) and places == sorted(set(places))
        steps = np.diff([*places, len(labeled)])
        assert steps.max() - steps.min() <= 1


def test_preflight_asks_no_more_at_once_than_a_step_and_what_it_refuses_may_be_changed(tiny, runs, tmp_path, monkeypatch):
    asked, roll = [], GRPO.sample_groups
    monkeypatch.setattr(GRPO, "sample_groups", lambda self, rows, *rest: asked.append(len(rows)) or roll(self, rows, *rest))
    path = tmp_path / "grpo.yaml"
    for tokens in (2, 48):
        sections = {"rollout": {"max_tokens": tokens}, "train": {"steps": 1}, "watch": {"preflight_prompts": 10}}
        path.write_text(tiny.align("grpo", tiny.judge("text"), **sections))
        if tokens == 2:
            with pytest.raises(LoreError, match="All 40 answers to 10 prompts are truncated"):
                run_recipe(path)
            assert asked == [4, 4, 2]
    assert run_recipe(path).is_done  # in the same folder, though its recipe has other values now


def test_an_adapter_s_dropout_is_off_or_answers_would_be_scored_by_another_model(made):
    _, trainer = made(lora={"targets": "all-linear", "dropout": 0.5})
    rates = [module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert rates and not any(rates)


def test_advantages_are_cut_to_the_clamp(made):
    setup, trainer = made(grpo={"advantage_clamp": 0.8})
    inputs = asked(setup)
    kept = []
    choose = trainer.choose_groups
    trainer.choose_groups = lambda rows: kept.append(choose(rows)) or kept[-1]
    found = trainer._generate_and_score_completions(inputs)["advantages"]
    totals = torch.tensor(np.stack([group.rewards_G for group in kept[0][0]]), dtype=torch.float32)
    whole = (totals - totals.mean(1, keepdim=True)) / (totals.std(1, keepdim=True) + 1e-4)
    assert whole.abs().max() > 0.8
    torch.testing.assert_close(found, whole.clamp(-0.8, 0.8).reshape(-1))


def test_truncated_answers_have_no_loss(made):
    setup, trainer = made(rollout={"max_tokens": 30})
    batch = trainer._generate_and_score_completions(asked(setup))
    cut = torch.tensor([not any(token in trainer.eos_token_ids for token in ids) for ids in batch["completion_ids"].tolist()])
    assert cut.any() and not cut.all()
    assert ((batch["completion_mask"].sum(1) == 0) == cut).all()
    _, found = loss_and_gradients(trainer, batch)
    _, other = loss_and_gradients(trainer, batch | {"advantages": batch["advantages"].masked_fill(cut, 100.0)})
    assert all(torch.equal(found[name], other[name]) for name in found)


def test_answers_that_no_reward_can_judge_have_no_advantage_and_change_nobody_elses(made):
    setup, trainer = made()
    totals = trainer.rewards.totals

    def some(parts):
        values = totals(parts)
        values[:4] = np.nan  # a whole group
        values[4:8] = (np.nan, 1.0, 0.0, 0.5)
        return values

    trainer.rewards.totals = some
    batch = trainer._generate_and_score_completions(asked(setup))
    found = batch["advantages"]
    assert found[:5].tolist() == [0.0] * 5
    torch.testing.assert_close(found[5:8], torch.tensor([0.5, -0.5, 0.0]) / (0.5 + 1e-4))
    loss, _ = loss_and_gradients(trainer, batch)
    assert np.isfinite(loss)


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_calibration_is_rewarded_by_the_probabilities_behind_each_answers_own_reason(made, kind):
    setup, trainer = made(kind, adapter=True, rewards={"calibration": 0.5})
    groups = trainer.sample_groups([0, 1, 2])
    engine = TransformersEngine(trainer.model.eval(), load_processor(ModelSection(name=setup.recipe.model.name)), RUBRIC)
    seen = 0
    for group in groups:
        for answer in group.answers:
            if isinstance(answer.judgement, FormatFailure):
                assert answer.probabilities is None
                continue
            prompt = with_verdict_prefix(setup.prompts.messages(group.row), FMT, engine.verdict, answer.judgement.rationale)
            assert answer.probabilities == pytest.approx(engine.score([prompt])[0].tolist(), abs=1e-4)
            seen += 1
    assert seen
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 3 and all(0 <= line["rewards/calibration/mean"] <= 1 for line in lines)


def test_a_group_spread_over_processes_is_refused(made, monkeypatch):
    setup, _ = made(train={"batch_size": 8})
    from lore.train.rl.setup import trainer_arguments

    setup.args.per_device_train_batch_size = 2  # as two processes would get of 4 answers
    setup.args.gradient_accumulation_steps = setup.args.steps_per_generation = 1
    setup.args.generation_batch_size = 4
    with pytest.raises(LoreError, match="samples 2 answers at a time, which groups of 4 do not fill"):
        GRPO(**trainer_arguments(setup))


def test_what_a_run_lacks_is_said_before_the_model_is_loaded(made, tiny, runs, tmp_path, monkeypatch):
    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("lore.train.rl.setup.trained_model", loaded)
    with pytest.raises(LoreError, match="holds no labeled pair of split nowhere.*\n.*watch.path"):
        made(run="a", watch={"every": 2, "split": "nowhere"})
    bare = tmp_path / "bare.parquet"
    with PairWriter(bare) as writer:
        for pair in read_pairs(tiny.asked):
            pair.rationale = None
            writer.write(pair)
    with pytest.raises(
        LoreError, match=r"guided: none of the 48 chosen pairs of .*bare.parquet has gold reasoning.*\n.*guided=null"
    ):
        made(run="b", data={"path": str(bare)}, guided={})
    path = tmp_path / "c.yaml"
    path.write_text(tiny.align("c", tiny.judge("text"), pool={"path": str(tmp_path / "none.parquet")}))
    with pytest.raises(LoreError, match=r"pool.path .*none.parquet cannot be read.*\n.*run recipes/pool.yaml"):
        run_recipe(path)


def test_several_updates_on_one_batch_are_clipped_and_logged(made):
    _, trainer = made(rollout={"updates": 2}, train={"steps": 4, "lr": 1e-2, "schedule": "constant", "warmup": 0.0})
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 4
    clipped = [line["clip_ratio/region_mean"] for line in lines]
    assert clipped[0] == clipped[2] == 0 and max(clipped[1], clipped[3]) > 0  # the second update of each batch is off-policy
    assert ["rollout/tokens" in line for line in lines] == [True, False, True, False]


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_tokens_are_learned_from_with_the_probabilities_they_were_sampled_with(made, kind):
    """At temperature .7. With photos the placeholder of a photo is never sampled, and the trainer does not know of that."""
    _, trainer = made(kind, rollout={"temperature": 0.7})
    before = torch.random.get_rng_state()
    trainer.log_sampler_gap([0, 1, 2, 3])
    assert torch.equal(before, torch.random.get_rng_state())
    log = trainer._metrics["train"]["sampling/sampling_logp_difference/mean"]
    assert log[0] < (1e-4 if kind == "text" else 2e-3)
    trainer.generation_config.top_k = 2  # a filter that the trainer's log-probabilities know nothing of
    trainer.log_sampler_gap([0, 1, 2, 3])
    assert log[1] > 1e-3
    assert "generate" not in vars(trainer.model)


def test_the_gap_is_measured_where_a_watch_looks(made):
    _, trainer = made(watch={"every": 4, "split": "train"}, rollout={"updates": 2}, train={"save_every": 4})
    due = []
    for step in range(0, 12, 2):
        trainer.state.global_step = step
        due.append(trainer.gap_is_due())
    assert due == [False, True] * 3  # the watch comes after steps 4, 8 and 12
