"""Rollouts by vLLM, for grpo and ppo. vLLM's CPU build takes no new weights, so a stand-in answers in its place, behind TRL's own
VLLMGeneration: a model of its own that samples with log-probabilities, takes weights only by names it knows, and refuses prompts
that are too long. What vLLM itself does with them is not shown here.
"""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="TRL imports its side of vLLM only where vllm is installed")

from trl.generation.vllm_generation import VLLMGeneration  # noqa: E402

from lore.engines.loading import load_model, load_processor  # noqa: E402
from lore.recipe import ModelSection  # noqa: E402
from lore.run import run_recipe  # noqa: E402


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


@pytest.fixture
def stand_in(monkeypatch) -> list[StandIn]:
    """The stand-ins that a run has made, the newest last."""
    made: list[StandIn] = []

    def start(self) -> None:
        self.llm = StandIn(self.model.name_or_path, self.max_model_length, self.max_completion_length)
        self._llm_weights_sleeping = False
        made.append(self.llm)

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


def rolled(tiny, tmp_path, stand_in, stage: str, kind: str, updates: int, **sections) -> tuple[StandIn, list[dict]]:
    """The stand-in of a run of two rollouts, and the run's steps."""
    path = tmp_path / "run.yaml"
    path.write_text(
        tiny.align(
            stage,
            tiny.judge(kind),
            stage=stage,
            rollout={"engine": "vllm_colocate", "updates": updates},
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


def test_the_sampler_has_the_weights_of_the_step_and_sees_what_photos_there_are(tiny, runs, tmp_path, stand_in, whole_layer):
    llm, steps = rolled(tiny, tmp_path, stand_in, "grpo", "vision", 1, adapter=whole_layer, grpo={"kl": 0.01}, replay={"rows": 2})
    assert gap(steps) < 2e-3  # a step moves them by far more
    assert llm.longest == 640 and 0 < sum(llm.photos) < len(llm.photos)


def test_the_value_head_is_no_weight_of_the_sampler(tiny, runs, tmp_path, stand_in):
    llm, steps = rolled(tiny, tmp_path, stand_in, "ppo", "text", 2, adapter=tiny.adapter("text"), ppo={"kl": 0.01})
    assert gap(steps) < 1e-4
    assert llm.longest == 512 + 2 * 48 and not any(llm.photos)
    assert all("value/loss" in line for line in steps)
