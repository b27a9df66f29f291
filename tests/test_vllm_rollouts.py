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
def adapter(tiny):
    """The adapter of a kind; "saved" has the output layer whole, of which a reference keeps a copy."""

    def of(kind: str, saved: bool):
        done = tiny.pairs.parent / "adapter-saved"
        if saved and not done.exists():
            lora = {"targets": ["q_proj"], "modules_to_save": ["lm_head"]}
            tiny.train_once("adapter-saved", done, {"name": str(tiny.judge(kind))}, model=kind, lora=lora, steps=2, lr=1e-3)
        return done if saved else tiny.adapter(kind)

    return of


ADDITIONS = {"dynamic": {"extra": 0.5}, "guided": {"share": 0.5}, "replay": {"rows": 2}}


@pytest.mark.parametrize(
    "stage, kind, updates, sections",
    [
        ("grpo", "text", 2, ADDITIONS),
        ("grpo", "vision", 1, {}),
        ("ppo", "text", 2, {"guided": {"share": 0.5}, "ppo": {"kl": 0.01}}),
        ("grpo", "text", 1, {"grpo": {"kl": 0.01}}),
    ],
    ids=["grpo", "grpo, some prompts with a photo", "ppo", "grpo, a whole layer and a reference"],
)
def test_the_sampler_has_the_weights_of_the_step(tiny, runs, tmp_path, stand_in, adapter, stage, kind, updates, sections):
    path = tmp_path / "run.yaml"
    body = tiny.align(
        stage,
        tiny.judge(kind),
        stage=stage,
        adapter=adapter(kind, saved="kl" in sections.get("grpo", {})),
        rollout={"engine": "vllm_colocate", "updates": updates},
        train={"steps": 2 * updates, "lr": 1e-2, "micro_batch_size": 4, "max_tokens": 640},
        watch={"preflight_prompts": 4},
        **sections,
    )
    path.write_text(body)
    steps = [line for line in run_recipe(path).metrics() if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 2 * updates + 1))
    gaps = [line[key] for line in steps for key in line if key.startswith("sampling/sampling_logp_difference/m")]
    # After the first update weights have moved by far more than this, so it is the new ones that answer.
    assert gaps and max(gaps) < (2e-3 if kind == "vision" else 1e-4)
    llm = stand_in[-1]
    assert llm.syncs == 2 and llm.longest == (640 if kind == "vision" else 560)
    assert (0 < sum(llm.photos) < len(llm.photos)) if kind == "vision" else not any(llm.photos)
    if stage == "ppo":
        assert all("value/loss" in line for line in steps)
