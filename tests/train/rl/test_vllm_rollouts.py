"""Rollouts by vLLM, for grpo and ppo. vLLM's CPU build takes no new weights, so a stand-in answers in its place, behind TRL's own
VLLMGeneration: a model of its own that samples with log-probabilities, takes weights only by names it knows, and refuses prompts
that are too long. What vLLM itself does with them is not shown here.
"""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="TRL imports its side of vLLM only where vllm is installed")

from accelerate import Accelerator  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402
from trl.generation.vllm_generation import VLLMGeneration  # noqa: E402

from lore.config.stages import load_recipe  # noqa: E402
from lore.engines.config import ModelSection  # noqa: E402
from lore.engines.loading import load_model, load_processor  # noqa: E402
from lore.run.run_folder import RunFolder  # noqa: E402
from lore.run.runner import run_recipe  # noqa: E402
from lore.support.errors import LoreError  # noqa: E402
from lore.train.common.frozen_weights import FrozenWeights  # noqa: E402
from lore.train.common.trl_internals import check_mergeable  # noqa: E402
from lore.train.rl.grpo import GRPO, prepare  # noqa: E402


class StandIn:
    """vLLM's LLM, as far as TRL uses it."""

    def __init__(self, name: str, longest: int, most: int):
        section = ModelSection(name=name)
        self.model, self.processor = load_model(section, device="cpu").eval(), load_processor(section)
        self.longest, self.most = longest, most
        self.weights = dict(self.model.named_parameters())
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=SimpleNamespace(model=self)))
        )
        self.syncs, self.photos = 0, []

    def load_weights(self, weights) -> None:
        for name, value in weights:
            if name not in self.weights:
                raise ValueError(f"There is no module or parameter named {name!r}")
            self.weights[name].data.copy_(value)

    def reset_prefix_cache(self) -> None:
        self.syncs += 1

    def generate(self, prompts, sampling_params, use_tqdm) -> list:
        return [self.answer(prompt, sampling_params) for prompt in prompts]

    @torch.no_grad()
    def answer(self, prompt: dict, params) -> SimpleNamespace:
        assert len(prompt["prompt_token_ids"]) + 1 <= self.longest
        assert (params.top_p, params.top_k, params.max_tokens) == (1.0, 0, self.most)
        assert getattr(self.processor, "tokenizer", self.processor).convert_tokens_to_ids("<|im_end|>") in params.stop_token_ids
        shown = prompt.get("multi_modal_data")
        self.photos.append(shown is not None)
        photo = self.processor.image_processor([[shown["image"]]], return_tensors="pt") if shown else {}
        ids = torch.tensor([prompt["prompt_token_ids"]])
        found = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            temperature=params.temperature,
            max_new_tokens=params.max_tokens,
            output_scores=True,
            return_dict_in_generate=True,
            **photo,
        )
        tokens = found.sequences[0, ids.shape[1] :].tolist()
        logps = torch.cat(found.scores).float().log_softmax(-1)
        known = [{token: SimpleNamespace(rank=1, logprob=logps[t, token].item())} for t, token in enumerate(tokens)]
        return SimpleNamespace(
            prompt_token_ids=prompt["prompt_token_ids"], outputs=[SimpleNamespace(token_ids=tokens, logprobs=known)]
        )


class Client:
    """TRL's client of a server that runs the stand-in: texts and features go there, ids and log-probabilities come back."""

    def __init__(self, llm: StandIn):
        self.llm, self.reset_prefix_cache = llm, llm.reset_prefix_cache

    def get_server_info(self) -> dict:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, weights) -> None:
        known = {name: (dtype, shape) for name, dtype, shape in metadata}
        for name, value in weights:
            assert known.pop(name) == (str(value.dtype).removeprefix("torch."), list(value.shape))
            self.llm.load_weights([(name, value)])
        assert not known

    def image_features(self, shown: list) -> list:
        return [photos and {"image": photos[0], "mm_placeholders": {"image": [None]}} for photos in shown]

    def generate(self, prompts, features, n, temperature, top_p, top_k, max_tokens, generation_kwargs, **_) -> dict:
        params = SimpleNamespace(temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens, **generation_kwargs)
        answers = []
        for prompt, feature in zip(prompts, features or [None] * len(prompts), strict=True):
            if feature is not None:  # its places are those of the photo's tokens
                places, ids = feature["mm_placeholders"]["image"], np.array(prompt)
                photo = self.llm.processor.tokenizer.convert_tokens_to_ids(self.llm.processor.image_token)
                assert [ids[one["offset"] :][: one["length"]].tolist() for one in places] == [[photo] * (ids == photo).sum()]
            asked = {"prompt_token_ids": prompt} | ({"multi_modal_data": feature} if feature else {})
            answers += [self.llm.answer(asked, params).outputs[0] for _ in range(n)]
        known = [[list(step.items())[0] for step in answer.logprobs] for answer in answers]
        return {
            "prompt_ids": prompts,
            "completion_ids": [answer.token_ids for answer in answers],
            "logprobs": [[[value.logprob] for _, value in steps] for steps in known],
            "logprob_token_ids": [[[token] for token, _ in steps] for steps in known],
        }


@pytest.fixture
def stand_in(monkeypatch) -> list[StandIn]:
    """The stand-ins that a run has made, the newest last."""
    made: list[StandIn] = []

    def start(self) -> None:
        made.append(StandIn(self.model.name_or_path, self.max_model_length, self.max_completion_length))
        if self.mode == "server":
            self.vllm_client = Client(made[-1])
        else:
            self.llm, self._llm_weights_sleeping = made[-1], False

    monkeypatch.setattr(VLLMGeneration, "_init_vllm", start)
    return made


@pytest.fixture
def whole_layer(tiny):
    """An adapter that has the output layer whole: a reference keeps a copy of that, which is none of vLLM's weights."""
    done = tiny.pairs.parent / "adapter-whole"
    if not done.exists():
        lora = {"targets": ["q_proj"], "modules_to_save": ["lm_head"]}
        tiny.train_once("adapter-whole", done, {"name": str(tiny.judge("vision"))}, lora=lora, steps=2, lr=1e-3)
    return done


def rolled(
    tiny, tmp_path, stand_in, stage: str, kind: str, updates: int, engine: str = "vllm_colocate", **sections
) -> tuple[StandIn, list[dict]]:
    """The stand-in of a run of two rollouts, and the run's steps."""
    path = tmp_path / "run.yaml"
    path.write_text(
        tiny.align(
            stage,
            tiny.judge(kind),
            stage=stage,
            rollout={"engine": engine, "updates": updates},
            train={"steps": 2 * updates, "lr": 1e-2, "micro_batch_size": 4, "max_tokens": 640},
            guided={"share": 0.5},
            watch={"preflight_prompts": 4},
            **sections,
        )
    )
    steps = [line for line in run_recipe(path).metrics() if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 2 * updates + 1))
    assert stand_in[-1].syncs == 2
    return stand_in[-1], steps


def gap(steps: list[dict]) -> float:
    """Largest difference between the sampler's log-probabilities and the trainer's."""
    return max(line[key] for line in steps for key in line if key.startswith("sampling/sampling_logp_difference/m"))


@pytest.mark.slow  # trains a judge
@pytest.mark.parametrize("engine", ["vllm_colocate", "vllm_server"])
def test_the_sampler_has_the_weights_of_the_step_and_sees_what_photos_there_are(
    tiny, runs, tmp_path, stand_in, whole_layer, engine
):
    more = {"adapter": whole_layer, "grpo": {"kl": 0.01}, "replay": {"rows": 2}}
    llm, steps = rolled(tiny, tmp_path, stand_in, "grpo", "vision", 1, engine, **more)
    assert gap(steps) < 2e-3  # a step moves them by far more
    assert llm.longest == 640 and 0 < sum(llm.photos) < len(llm.photos)


@pytest.mark.slow
def test_the_value_head_is_no_weight_of_the_sampler(tiny, runs, tmp_path, stand_in):
    llm, steps = rolled(tiny, tmp_path, stand_in, "ppo", "text", 2, adapter=tiny.adapter("text"), ppo={"kl": 0.01})
    assert gap(steps) < 1e-4
    assert llm.longest == 512 + 2 * 48 and not any(llm.photos)
    assert all("value/loss" in line for line in steps)


def bfloat16_trainer(tiny, tmp_path: Path, engine: str = "vllm_colocate", **sections) -> GRPO:
    """The trainer of a recipe that computes in bfloat16, before its first step."""
    body = json.loads(tiny.align("grpo", tiny.text, rollout={"engine": engine}, **sections))
    body["model"]["dtype"] = "bfloat16"
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(body, indent=1))
    recipe = load_recipe(path)
    folder = RunFolder.of(recipe)
    folder.open(recipe)
    return prepare(recipe, folder)[1]


def loaded_adapter(tiny, tmp_path: Path) -> Path:
    """An rslora adapter on linear layers and embeddings, with the output layer whole."""
    lora = {"targets": ["embed_tokens", "q_proj", "down_proj"], "modules_to_save": ["lm_head"], "rank": 16}
    tiny.train_once("several", tmp_path / "adapter", {"name": str(tiny.text)}, model="text", lora=lora, steps=2, lr=1e-3)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    return tmp_path / "adapter"


def merged_by_hand(trainer: GRPO) -> dict[str, torch.Tensor]:
    """What the trainer computes with, by the names of the base: base + scale * B A in float32, rounded once; DoRA's formula."""
    state = {name.removeprefix("base_model.model."): value.detach().float() for name, value in trainer.model.named_parameters()}
    config = trainer.model.peft_config["default"]
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    merged = {}
    for name, value in state.items():
        if "lora_" in name or "original_module" in name or ".ref." in name:
            continue
        at = name.partition(".base_layer")[0]
        if f"{at}.lora_A.default.weight" in state:
            delta = state[f"{at}.lora_B.default.weight"] @ state[f"{at}.lora_A.default.weight"] * scale
        elif f"{at}.lora_embedding_A.default" in state:
            delta = (state[f"{at}.lora_embedding_B.default"] @ state[f"{at}.lora_embedding_A.default"]).T * scale
        else:
            merged[name.replace(".modules_to_save.default", "")] = value
            continue
        value = value + delta
        if config.use_dora:
            value = state[f"{at}.lora_magnitude_vector.default.weight"][:, None] / value.norm(dim=1, keepdim=True) * value
        merged[name.replace(".base_layer", "")] = value.bfloat16().float()
    return merged


@pytest.mark.parametrize("engine", ["vllm_colocate", "vllm_server"])
@pytest.mark.parametrize("kind", ["lora", "dora", "loaded"])
def test_fifty_hand_overs_in_bfloat16_leave_the_frozen_weights_as_they_are(tiny, runs, tmp_path, stand_in, kind, engine):
    options = {"lora": {"dora": kind == "dora"}}
    if kind == "loaded":  # the reference is a copy of this adapter
        options = {"adapter": loaded_adapter(tiny, tmp_path), "grpo": {"kl": 0.01}}
    trainer = bfloat16_trainer(tiny, tmp_path, engine, **options)
    llm, model = stand_in[-1], trainer.model
    frozen = {name: weight.detach().clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    assert sum(weight.dtype == torch.bfloat16 for weight in frozen.values()) > 10 and len(frozen) < len(
        dict(model.named_parameters())
    )
    check = FrozenWeights(trainer)
    check.on_train_begin(None, None, None)
    trainer.check_frozen = check.check
    torch.manual_seed(0)
    for number in range(50):
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += 0.02 * torch.randn_like(weight)
        sent = merged_by_hand(trainer)
        trainer.vllm_generation.sync_weights()
        assert llm.syncs == number + 1 and sent.keys() == llm.weights.keys()
        for name, weight in sent.items():
            torch.testing.assert_close(llm.weights[name].data, weight, rtol=8e-3 if kind == "dora" else 0, atol=0, msg=name)
    for name, weight in model.named_parameters():
        assert name not in frozen or torch.equal(weight.view(torch.uint8), frozen[name].view(torch.uint8)), name
    assert not any(getattr(module, "merged_adapters", None) for module in model.modules())


def test_a_merge_in_place_is_noticed(tiny, runs, tmp_path, stand_in):
    """TRL's own hand-over rounds the base: what the fingerprint is for."""
    trainer = bfloat16_trainer(tiny, tmp_path, lora={})
    check = FrozenWeights(trainer)
    check.on_train_begin(None, None, None)
    trainer.check_frozen = check.check
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    trainer.vllm_generation._iter_named_params = lambda: VLLMGeneration._iter_named_params(trainer.vllm_generation)
    with pytest.raises(LoreError) as error:
        for _ in range(20):
            trainer.vllm_generation.sync_weights()
    assert re.match(
        r"14 of 21 frozen weights have changed since training began \(after the weights went to the sampler, step 0\): "
        r"base_model\.model\.model\.layers\.0\.self_attn\.q_proj\.base_layer\.weight, ",
        str(error.value),
    )


@pytest.mark.slow
def test_a_run_in_bfloat16_learns_from_what_its_sampler_says(tiny, runs, tmp_path, stand_in, capsys):
    body = json.loads(tiny.align("grpo", tiny.judge("text"), lora={}, rollout={"engine": "vllm_colocate"}, train={"lr": 1e-2}))
    body["model"]["dtype"] = "bfloat16"
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(body, indent=1))
    steps = [line for line in run_recipe(path).metrics() if "loss" in line]
    assert len(steps) == 3 and stand_in[-1].syncs == 3
    assert gap(steps) < 0.5
    assert "frozen weights: 21 tensors" in capsys.readouterr().out


@pytest.fixture
def tied(tiny, tmp_path) -> Path:
    """The text model with one weight for its input embeddings and its output layer."""
    shutil.copytree(tiny.text, tmp_path / "tied")
    config = AutoConfig.from_pretrained(tiny.text, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


TIED = [
    ({"target_modules": ["embed_tokens", "q_proj"]}, "model.embed_tokens"),
    ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "lm_head"),
    ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, "embed_tokens"),
]


@pytest.mark.parametrize("options, named", TIED, ids=["adapter", "output", "input"])
def test_a_tied_weight_that_the_adapter_changes_apart_is_refused(tied, options, named):
    """Such adapters come from elsewhere: those of a recipe train the weight as one, or are refused."""
    message = rf"(?s)merged: .*{named}.* are tied in the base.*rollout.engine: transformers"
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tied), LoraConfig(r=4, **options))
    with pytest.raises(LoreError, match=message):
        check_mergeable(adapted, Accelerator())


def test_an_adapter_that_is_no_lora_is_refused(tied):
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5]})
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tied), config)
    with pytest.raises(LoreError, match="is a TrainableTokensLayer, no LoRA layer"):
        check_mergeable(adapted, Accelerator())


def test_an_older_adapter_that_parts_the_shared_weight_is_refused_before_step_0(tiny, tied, runs, tmp_path, stand_in):
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tied), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(LoreError, match="lm_head.* are tied in the base"):
        bfloat16_trainer(SimpleNamespace(align=tiny.align, text=tied), tmp_path, adapter=tmp_path / "adapter")


@pytest.mark.parametrize("saved", [[], ["lm_head"], ["embed_tokens"]], ids=["frozen", "output", "input"])
def test_a_tied_weight_goes_to_the_sampler_as_one(tiny, tied, runs, tmp_path, stand_in, saved):
    lora = {"targets": ["q_proj"], "modules_to_save": saved}
    trainer = bfloat16_trainer(SimpleNamespace(align=tiny.align, text=tied), tmp_path, lora=lora)
    source, output = trainer.model.get_input_embeddings(), trainer.model.get_output_embeddings()
    assert source.weight is output.weight and source.weight.requires_grad == bool(saved)
    with torch.no_grad():
        source.weight.add_(0.25)
    trainer.vllm_generation.sync_weights()
    sampler = stand_in[-1].model
    assert sampler.lm_head.weight is sampler.model.embed_tokens.weight
    assert torch.equal(sampler.lm_head.weight, source.weight.detach().float())


def test_four_bit_weights_and_vllm_rollouts_are_refused_before_anything_loads(tiny, tmp_path):
    body = json.loads(tiny.align("grpo", tiny.text, lora={}, rollout={"engine": "vllm_colocate"}))
    body["model"]["quantize"] = "nf4"
    (tmp_path / "run.yaml").write_text(json.dumps(body, indent=1))
    with pytest.raises(LoreError, match="would round the adapter to 4 bits"):
        load_recipe(tmp_path / "run.yaml")
