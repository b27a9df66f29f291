"""Turns the recipe's judges into verdicts: trained baselines, stored predictions, and askers for models and endpoints."""

import gc
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.data.parquet import read_pairs
from lore.engines.engine import Engine, Sampling
from lore.engines.open_engine import open_engine
from lore.eval.baselines import fit_baseline
from lore.eval.config import EvaluateRecipe
from lore.eval.sections import JudgeSection
from lore.eval.testset import EvalData, load_split, read_chosen
from lore.judge.card import check_card, check_template
from lore.judge.dry_pass import VERDICT_TOKENS, Asked, judge_length
from lore.judge.foreign_predictions import read_predictions
from lore.judge.resumable import Asker, ScorerAsker, Verdicts
from lore.judge.verdict import Verdict
from lore.rubric.rubric import Rubric
from lore.run.run_folder import RunFolder
from lore.student.card import check_rubric, read_student
from lore.student.scorer import chosen, open_student, student_id
from lore.support.allocator import give_back_freed_memory
from lore.support.fingerprint import model_fingerprint
from lore.support.progress import track

TEXT_COLUMNS = ["pair_id", "query", "title", "attributes", "description", "category", "brand"]
BASELINE_BATCH = 4096


def prompt_format(judge: JudgeSection, recipe: EvaluateRecipe) -> PromptFormat:
    """The recipe's prompt format with the judge's own settings on top."""
    replaced = {key: value for key in ("order", "detail", "photo") if (value := getattr(judge, key)) is not None}
    return PromptFormat(**(recipe.prompt.model_dump() | replaced))


def described(judge: JudgeSection, recipe: EvaluateRecipe) -> str:
    """One line that describes a judge."""
    if judge.kind == "majority":
        return f"the most frequent tier of split {recipe.train_split}"
    if judge.kind == "lexical":
        return f"gradient boosting over word overlap, trained on split {recipe.train_split}"
    if judge.kind == "predictions":
        return f"predictions from {judge.predictions}"
    if judge.kind == "student":
        return f"student {judge.path}" + (f" in {judge.precision}" if judge.precision != "auto" else "")
    fmt = prompt_format(judge, recipe)
    if judge.kind == "endpoint":
        who = f"{judge.endpoint.model} at {judge.endpoint.url}"
    else:
        who = judge.model.name + (f" with adapter {judge.model.adapter}" if judge.model.adapter else "")
    if judge.vllm is not None:
        who += " in vLLM"
    return f"{who}; {fmt.order}, rubric: {fmt.detail}, photo {'shown' if fmt.photo else 'hidden'}"


def baseline_verdicts(recipe: EvaluateRecipe, data: EvalData) -> dict[str, Verdicts]:
    """Trains the baselines on the train split of the same data and returns their verdicts."""
    names = {name: judge.kind for name, judge in recipe.rows().items() if judge.kind in ("lexical", "majority")}
    if not names:
        return {}
    train_path, fractions = Path(recipe.train_path) if recipe.train_path else data.path, recipe.data.split_fractions
    train = load_split(
        train_path,
        recipe.train_split,
        data.rubric,
        slices=recipe.data.slices,
        limit=recipe.train_limit,
        seed=recipe.seed,
        fractions=fractions,
    )
    pairs = list(read_chosen(train_path, train.split, train.pair_ids, TEXT_COLUMNS, fractions=fractions))
    order = [train.position[pair.pair_id] for pair in pairs]
    gold, weights = train.gold[order], train.weights[order] if recipe.metrics.label_weights else None
    tier_ids, verdicts = data.rubric.tier_ids, {}
    for name, kind in names.items():
        baseline = fit_baseline(kind, pairs, gold, len(tier_ids), weights=weights, seed=recipe.seed)
        verdicts[name] = {}
        for part in data.parts:
            left = read_chosen(data.path, part.split, part.pair_ids, TEXT_COLUMNS)
            left = track(left, f"{name}: {part.split}", total=len(part))
            while batch := list(islice(left, BASELINE_BATCH)):
                for pair, row in zip(batch, baseline.predict(batch), strict=True):
                    verdicts[name][pair.pair_id] = Verdict(pair.pair_id, tier_ids[int(row.argmax())], row.tolist())
    return verdicts


def read_verdicts(recipe: EvaluateRecipe, data: EvalData) -> dict[str, Verdicts]:
    """Reads the verdicts of judges of kind predictions."""
    judges = {name: judge for name, judge in recipe.judges.items() if judge.kind == "predictions"}
    dev_ids = data.dev.pair_ids if data.dev else []
    limited = [part.split for part, limit in ((data.test, recipe.test_limit), (data.dev, recipe.dev_limit)) if part and limit]
    left_out = {pair.pair_id for split in limited for pair in read_pairs(data.path, split=split, columns=[])} if judges else set()
    return {
        name: read_predictions(
            judge.predictions, data.rubric, data.test.pair_ids, dev_ids, judge.predictions_judge, left_out=left_out
        )
        for name, judge in judges.items()
    }


def asked_models(recipe: EvaluateRecipe, data: EvalData) -> Iterator[Asked]:
    """What the dry pass checks about each judge that this run queries."""
    def pairs() -> Iterator[Pair]:
        return chain.from_iterable(
            read_chosen(data.path, part.split, part.pair_ids, image_roots=data.image_roots) for part in data.parts
        )

    for name, judge in recipe.asked().items():
        fmt = prompt_format(judge, recipe)
        writes = fmt.order == "reason_first" or judge.explain or not judge.scores
        answer = recipe.sampling.max_tokens if writes else VERDICT_TOKENS
        # Probes change prompts within their budget: changed pairs in that of the judge, facts and rules in their own.
        probed = fmt.max_prompt_tokens if recipe.robustness is not None or recipe.capability is not None else 0
        probed = max(probed, (recipe.capability.max_prompt_tokens or 0) if recipe.capability is not None else 0)
        yield Asked(
            f"judges.{name}",
            judge.endpoint or judge.model,
            judge_length(fmt, data.rubric, pairs, answer, other_budget=probed),
            f"the longest prompt with an answer of {answer:,} tokens",
            "lower prompt.max_prompt_tokens or sampling.max_tokens",
            judge.vllm,
            fmt,
        )


def askers(recipe: EvaluateRecipe, data: EvalData, folder: RunFolder) -> dict[str, Asker]:
    """One asker per judge that this run queries. Raises LoreError if a judge's card does not match its prompt."""
    engines = OpenEngine(data.rubric, recipe.batch_tokens)
    sampling = Sampling(temperature=recipe.sampling.temperature, max_tokens=recipe.sampling.max_tokens, seed=recipe.seed)
    found = {}
    for name, judge in recipe.asked().items():
        fmt = prompt_format(judge, recipe)
        renderer = renderer_hash(data.rubric, fmt)
        folder.note(**{f"renderer_hash of {name}": renderer})
        if judge.kind == "model":
            check_card(judge.model, renderer, f"judges.{name}")
            weights = model_fingerprint(judge.model.name, judge.model.adapter)
            folder.note(**{f"weights of {name}": weights})
        else:
            weights = judge.endpoint.model
        found[name] = Asker(
            name,
            folder / "verdicts" / name,
            partial(engines.of, name, judge),
            data.rubric,
            fmt,
            sampling,
            recipe.chunk_pairs,
            judge.explain,
            judge.scores,
            weights,
            recipe.unanswered,
        )
    return found


def student_askers(recipe: EvaluateRecipe, data: EvalData, folder: RunFolder) -> dict[str, ScorerAsker]:
    """One asker per student of the recipe. Raises LoreError for a folder without a student, and for one with another rubric."""
    found = {}
    for name, judge in recipe.students().items():
        card = read_student(judge.path)
        check_rubric(card, data.rubric, f"judges.{name}")
        chosen_id = student_id(card, *chosen(card.folder, "auto", judge.precision))
        folder.note(**{f"weights of {name}": chosen_id})
        opened = partial(open_student, judge.path, precision=judge.precision, photo_embeddings=judge.photo_embeddings)
        found[name] = ScorerAsker(name, folder / "verdicts" / name, opened, card.tiers, chosen_id, recipe.chunk_pairs)
    return found


class OpenEngine:
    """Keeps one engine in memory at a time. Consecutive judges that differ only in their prompt share it."""

    def __init__(self, rubric: Rubric, batch_tokens: int):
        self.rubric, self.batch_tokens = rubric, batch_tokens
        self._section, self._engine = None, None

    def of(self, name: str, judge: JudgeSection) -> Engine:
        section = (judge.endpoint or judge.model, judge.vllm)
        if section != self._section:
            self.close()
            model, vllm = section
            self._engine = open_engine(model, self.rubric, vllm=vllm, batch_tokens=self.batch_tokens)
            self._section = section
            if judge.kind == "model":
                check_template(judge.model, getattr(self._engine, "processor", self._engine.tokenizer), f"judges.{name}")
        return self._engine

    def close(self) -> None:
        """Frees the engine's memory."""
        if hasattr(self._engine, "close"):
            self._engine.close()
        self._engine = self._section = None
        gc.collect()
        give_back_freed_memory()
