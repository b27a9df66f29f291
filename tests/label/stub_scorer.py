"""A scorer for tests: a tier from the words of a pair, at once. It counts what it is asked."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lore.config.stages import load_recipe
from lore.data.pair import Pair
from lore.engines.engine import EngineUsage
from lore.judge.verdict import Verdict
from lore.label.label import run
from lore.label.recipe import LabelRecipe
from lore.label.worker import ShardWorker, WorkerSpec
from lore.run.input_hashes import note_inputs
from lore.run.run_folder import RunFolder
from lore.run.runner import is_finished

TIERS = ["L1", "L2", "L3", "L4"]


@dataclass
class StubScorer:
    """tier_ids as in rubric shop. fails: gives the failure of a pair, or None. asked: ids of all pairs so far, shard by shard."""

    fails: Callable[[Pair], str | None] = lambda pair: None
    asked: list[list[str]] = field(default_factory=list)
    usage: EngineUsage = field(default_factory=EngineUsage)
    tier_ids: list[str] = field(default_factory=lambda: list(TIERS))
    judge_id: str = "stub"

    def score(self, pairs: list[Pair]) -> list[Verdict]:
        self.asked.append([pair.pair_id for pair in pairs])
        self.usage.prompt_tokens += 10 * len(pairs)
        return [self._verdict(pair) for pair in pairs]

    def _verdict(self, pair: Pair) -> Verdict:
        if failure := self.fails(pair):
            return Verdict(pair.pair_id, None, failure=failure, detail="the server's words", judge_id=self.judge_id)
        tier = len(f"{pair.query} {pair.title}") % 4
        probabilities = [0.7 if index == tier else 0.1 for index in range(4)]
        return Verdict(pair.pair_id, TIERS[tier], probabilities, judge_id=self.judge_id)


def label_recipe(tmp_path: Path, pairs: Path, **values) -> LabelRecipe:
    """A label recipe whose judge is never asked: a server at a closed port."""
    body = {
        "stage": "label",
        "run": "labels",
        "input": {"path": str(pairs)},
        "judge": {
            "endpoint": {"url": "http://127.0.0.1:9/v1", "model": "stub"},
            "prompt": {"order": "answer_only", "detail": "name"},
            "rubric": "shop",
        },
        "store": "none",
        "shard_pairs": 8,
    }
    path = tmp_path / "label.yaml"
    path.write_text(json.dumps(body | values))
    return load_recipe(path)


def label_once(recipe: LabelRecipe, folder: Path, scorer: StubScorer | None = None) -> StubScorer:
    """Runs the stage as `lore label` does: a finished folder is opened again only if there is something to do."""
    scorer = scorer or StubScorer()

    def make_worker(spec: WorkerSpec) -> ShardWorker:
        return ShardWorker(spec, scorer=scorer)

    run_folder = RunFolder(folder, recipe)
    try:
        if not is_finished(recipe, run_folder):
            run_folder.open(recipe)
            note_inputs(recipe, run_folder)
            run(recipe, run_folder, make_worker)
    finally:
        run_folder.close()
    return scorer
