"""A tiny shop, a tiny vision-language model and a tiny text model with random weights, and recipes for them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

HIDDEN = 32


@dataclass(frozen=True)
class Tiny:
    """The created folders: pairs/ (train and test), an Idefics3 and a Llama with the same tokenizer."""

    pairs: Path
    vision: Path
    text: Path

    def recipe(self, run: str, *, model: str = "vision", lora: dict | None = None, prompt=None, data=None, **train) -> str:
        """An SFT recipe as JSON, which is also YAML: 8 steps of 8 pairs by default. `train` replaces keys of its section."""
        section = {"name": str(self.vision if model == "vision" else self.text)}
        if lora is not None:
            section["lora"] = {"rank": 4, **lora}
        body = {
            "stage": "sft",
            "run": run,
            "model": section,
            "data": {"path": str(self.pairs), "rubric": "shop", "split": "train", "limit": 96} | (data or {}),
            "prompt": {"order": "reason_first", "detail": "name", "max_prompt_tokens": 512} | (prompt or {}),
            "train": {"steps": 8, "batch_size": 8, "lr": 1e-2, "log_every": 1, "save_every": 2} | train,
        }
        return json.dumps(body, indent=1)

    @property
    def asked(self) -> Path:
        """48 of the train pairs, some with a photo. Every fourth pair has no rationale."""
        return self.pairs.parent / "asked.parquet"

    @property
    def pool(self) -> Path:
        """A pool of the pairs in `asked`, each with eight samples of which some are right."""
        return self.pairs.parent / "pool.parquet"

    def judge(self, kind: str) -> Path:
        """A model that is trained well enough to sample valid judgements, trained once by an SFT recipe."""
        done = self.pairs.parent / f"judge-{kind}"
        if not done.exists():
            self.train_once(f"judge-{kind}", done, model=kind, steps=110, batch_size=16, data={"limit": 64}, adam_beta2=0.98)
        return done

    def adapter(self, kind: str) -> Path:
        """An adapter for the judge of `judge`, trained for two steps."""
        done = self.pairs.parent / f"adapter-{kind}"
        if not done.exists():
            base = {"name": str(self.judge(kind))}
            self.train_once(f"adapter-{kind}", done, base, model=kind, lora={"targets": "all-linear"}, steps=2, lr=1e-3)
        return done

    def train_once(self, run: str, target: Path, base: dict | None = None, **options) -> None:
        from lore.run.runner import run_recipe

        body = json.loads(self.recipe(run, **{"save_every": 0} | options))
        body["model"] |= base or {}
        path = self.pairs.parent / f"{run}.yaml"
        path.write_text(json.dumps(body))
        shutil.copytree(run_recipe(path) / "model", target)

    def align(self, run: str, judge: Path, *, stage: str = "grpo", adapter: Path | None = None, lora=None, **sections) -> str:
        """A recipe of stage grpo or ppo as JSON: 3 steps of 4 prompts with 4 completions each, without optional features.
        `sections` update the sections of the recipe; None removes a section."""
        body = {
            "stage": stage,
            "run": run,
            "model": {"name": str(judge)},
            "data": {"path": str(self.asked), "rubric": "shop"},
            "prompt": {"order": "reason_first", "detail": "name", "max_prompt_tokens": 512},
            "pool": {"path": str(self.pool)},
            "rollout": {"group": 4, "max_tokens": 48},
            "train": {"steps": 3, "batch_size": 16, "lr": 1e-3, "log_every": 1, "save_every": 0},
            "watch": {"every": 0, "preflight_prompts": 0},
        }
        if adapter is not None:
            body["model"]["adapter"] = str(adapter)
        if lora is not None:
            body["model"]["lora"] = {"rank": 4, **lora}
        for name, section in sections.items():
            body[name] = body.get(name, {}) | section if isinstance(section, dict) else section
        return json.dumps({name: section for name, section in body.items() if section is not None}, indent=1)


def make(folder: Path, hidden: int = HIDDEN) -> Tiny:
    """Creates all files in two seconds, without training. vLLM on a CPU needs a head size of at least 32, which hidden=64 gives."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lore.data.parquet import PairWriter
    from lore.data_synth.shop.corpus import write_corpus
    from lore.data_synth.shop.world import World
    from lore.data_synth.shop.write import corpus_texts
    from lore.train.pretrain.config import ArchitectureSection
    from lore.train.pretrain.pretrain import build_model, build_processor

    world = World(seed=3)
    for split, count in (("train", 160), ("test", 64)):
        with PairWriter(folder / "pairs" / f"{split}.parquet") as writer:
            for pair in world.pairs(split, count):
                writer.write(pair)

    corpus = folder / "corpus.parquet"
    write_corpus(corpus, corpus_texts(world, 200))
    size = ArchitectureSection(
        hidden=hidden, layers=2, heads=2, mlp=48, max_positions=1024, vision_hidden=16, vision_layers=1, vision_heads=2
    )
    processor = build_processor([str(corpus)], 700, size)
    torch.manual_seed(0)
    build_model(size, processor).save_pretrained(folder / "vision")
    processor.save_pretrained(folder / "vision")
    tokenizer = processor.tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=1024,
        initializer_range=hidden**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    tiny = Tiny(folder / "pairs", folder / "vision", folder / "text")
    write_pool(tiny)
    return tiny


def write_pool(tiny: Tiny) -> None:
    """Writes `asked` and `pool`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lore.data.parquet import PairWriter, read_pairs
    from lore.train.pool.pool import POOL_SCHEMA

    rows = []
    with PairWriter(tiny.asked) as writer:
        for number, pair in enumerate(read_pairs(tiny.pairs, split="train", limit=48)):
            if number % 4 == 3:
                pair.rationale, pair.mismatch, pair.rules = None, None, []
            writer.write(pair)
            right = number % 9
            samples = [{"text": "", "tokens": 9, "tier": pair.label if i < right else None, "truncated": False} for i in range(8)]
            rows.append({"pair_id": pair.pair_id, "query": pair.query, "label": pair.label, "label_weight": 1.0, "slices": []})
            rows[-1] |= {"samples": samples, "pass_rate": right / 8, "confidence": 0.6, "agrees": True, "tier": pair.label}
    pq.write_table(pa.Table.from_pylist(rows, schema=POOL_SCHEMA), tiny.pool)


def adapter_judge(text: Path, path: Path, order: str = "reason_first", rubric_name: str = "shop") -> Path:
    """An adapter with its card on a tiny text model: what a run of sft leaves in <run>/model."""
    from types import SimpleNamespace

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from lore.codec.judgement import renderer_hash
    from lore.codec.prompt import PromptFormat
    from lore.codec.section import PromptSection
    from lore.engines.config import ModelSection
    from lore.engines.loading import load_processor
    from lore.judge.card import judge_card, write_card
    from lore.rubric.rubric import load_rubric

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(text), config).save_pretrained(path)
    prompt, rubric = PromptSection(order=order, detail="name", max_prompt_tokens=512), load_rubric(rubric_name)
    recipe = SimpleNamespace(model=SimpleNamespace(name=str(text)), data=SimpleNamespace(rubric=rubric_name), prompt=prompt)
    processor = load_processor(ModelSection(name=str(text)), chat=True)
    write_card(path, judge_card(recipe, renderer_hash(rubric, PromptFormat(**prompt.model_dump())), rubric.hash, processor))
    return path
