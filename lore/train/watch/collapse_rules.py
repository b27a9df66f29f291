"""Metrics of the periodic evaluation, selection of the best step, and the rules that detect a collapsed judge.

Imports no torch. Each evaluation is one line of metrics.jsonl, `{"step", "probe", "training"}`, with `stopped` if a rule fired. A
resumed run reads its history from that file.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lore.judge.answer import Answer
from lore.judge.confusion import confusion_of, macro_f1
from lore.rubric.rubric import Rubric
from lore.run.run_folder import RunFolder
from lore.support.console import Console, Table
from lore.support.errors import LoreError
from lore.train.watch.config import WatchSection

LOGGED = {
    "loss": "loss",
    "reward": "reward",
    "rewards/margins": "margin",
    "frac_reward_zero_std": "zero_spread",
    "sampling/sampling_logp_difference/mean": "gap",
    "entropy": "entropy",
    "kl": "kl",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "truncated",
}
"""Names of the trainer's logged values, and the names that an evaluation uses for them."""
RECORDED = ("reward", "rewards", "frac_reward_zero_std", "sampling", "kl", "completions")
"""Logged values, by name or by the part before the first `/`, that metrics.jsonl has to contain in addition to the losses: a
resumed run reads the values since the last evaluation from there."""
ROUNDING = 1e-9


@dataclass
class Probed:
    """A pair of the probe and its sampled answers."""

    pair_id: str
    label: str
    answers: list[Answer]


def probe_metrics(
    probed: Sequence[Probed],
    rubric: Rubric,
    entropy: float | None = None,
    reward_parts: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Metrics of one evaluation over all samples of all pairs.

    pass_at_1: share of correct answers; pass_at_k: share of pairs with a correct answer (unbiased, because k is the number of
    samples); macro_f1: as in lore.eval, a format failure counts as a miss; length: mean number of tokens; truncated,
    format_failures: shares of the answers; top_tier, top_share: the most frequent tier and its share of the verdicts (None and 0
    without any verdict); entropy in nats. reward_parts: mean of each reward component, with the total under `reward`; the
    components are returned as `reward/<name>`.
    """
    answers = [answer for one in probed for answer in one.answers]
    right = [[answer.tier == one.label for answer in one.answers] for one in probed]
    tiers = Counter(tier for answer in answers if (tier := answer.tier) is not None)
    top_tier, top = min(tiers.items(), key=lambda item: (-item[1], item[0]), default=(None, 0))
    parsed = sum(tiers.values())
    parts = dict(reward_parts or {})
    total = {"reward": parts.pop("reward")} if "reward" in parts else {}
    return {
        "pass_at_1": sum(map(sum, right)) / len(answers),
        "pass_at_k": sum(map(any, right)) / len(probed),
        "macro_f1": float(macro_f1(confusion_of([(one.label, answer.tier) for one in probed for answer in one.answers], rubric))),
        "entropy": entropy,
        "length": sum(answer.tokens for answer in answers) / len(answers),
        "truncated": sum(answer.truncated for answer in answers) / len(answers),
        "format_failures": 1 - parsed / len(answers),
        "top_share": top / parsed if parsed else 0.0,
        "top_tier": top_tier,
        **total,
        **{f"reward/{name}": value for name, value in parts.items()},
    }


def label_shares(labels: Sequence[str]) -> dict[str, float]:
    """Share of each tier among the probe's labels."""
    return {tier: count / len(labels) for tier, count in Counter(labels).items()}


def training_metrics(logs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of the values logged since the last evaluation, named as in LOGGED; reward components as `reward/<name>`."""
    found: dict[str, list[float]] = {}
    for line in logs:
        for key, value in line.items():
            name = LOGGED.get(key)
            if name is None and key.startswith("rewards/") and key.endswith("/mean"):
                name = f"reward/{key.removeprefix('rewards/').removesuffix('/mean')}"
            if name is not None and isinstance(value, int | float):
                found.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in found.items()}


class Watch:
    """The history of a run's evaluations. label_share: share of each tier among the probe's labels.

    The constructor reads the history from the run folder, so a resumed run has to create its Watch after metrics.jsonl was
    truncated to the checkpoint's step.
    """

    def __init__(self, section: WatchSection, folder: RunFolder, rubric: Rubric, label_share: dict[str, float]):
        self.section, self.folder, self.rubric, self.label_share = section, folder, rubric, label_share
        self.history = [line for line in folder.metrics() if "probe" in line]

    @property
    def steps(self) -> list[int]:
        return [line["step"] for line in self.history]

    @property
    def stopped(self) -> str | None:
        """Why a rule stopped training; None if no rule fired."""
        return next((line["stopped"] for line in self.history if "stopped" in line), None)

    @property
    def best_step(self) -> int | None:
        """The step of the first evaluation with the best value, excluding evaluations at which a rule fired."""
        return self.best_until(None)

    @property
    def best_value(self) -> float | None:
        """The value of `section.best` at best_step."""
        best = self.best_step
        return next((line["probe"][self.section.best] for line in self.history if line["step"] == best), None)

    def best_until(self, step: int | None) -> int | None:
        """The best step among the evaluations up to `step`; None means all."""
        lines = [line for line in self.history if "stopped" not in line and (step is None or line["step"] <= step)]
        best = max(lines, key=lambda line: line["probe"][self.section.best], default=None)
        return None if best is None else best["step"]

    def add(self, step: int, metrics: dict[str, Any], training: dict[str, Any]) -> str | None:
        """Adds an evaluation, writes it to metrics.jsonl and returns the reason to stop training, or None.

        metrics: result of `probe_metrics`; training: result of `training_metrics` for the values since the last evaluation.
        """
        line = self.weigh(step, metrics, training)
        self.folder.record(line)
        return line.get("stopped")

    def weigh(self, step: int, metrics: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
        """Adds an evaluation and returns its line; the caller writes it to metrics.jsonl after saving the best weights."""
        line = {"step": step, "probe": metrics, "training": training}
        self.history.append(line)
        reason = self._collapse()
        if reason is not None:
            line["stopped"] = reason
        return line

    def _collapse(self) -> str | None:
        probe = self.history[-1]["probe"]
        return self._constant(probe) or self._short(probe) or self._certain(probe) or self._falling()

    @property
    def _start(self) -> dict[str, Any] | None:
        """The first earlier evaluation at which most answers were valid and complete; before that, nothing can collapse."""
        probes = (line["probe"] for line in self.history[:-1])
        return next((p for p in probes if p["format_failures"] < 0.5 and p["truncated"] < 0.5), None)

    def _constant(self, probe: dict[str, Any]) -> str | None:
        limit, tier = self.section.constant_share, probe["top_tier"]
        varied = any(line["probe"]["top_share"] < limit and line["probe"]["format_failures"] < 0.5 for line in self.history[:-1])
        share = self.label_share.get(tier, 0.0)
        if not varied or probe["format_failures"] >= 0.5 or probe["top_share"] < limit or share >= limit:
            return None
        return (
            f"constant tier: {probe['top_share']:.0%} of the verdicts are {tier}, but only {share:.0%} of the probe's labels "
            f"(watch.constant_share {limit:g})"
        )

    def _short(self, probe: dict[str, Any]) -> str | None:
        start, limit = self._start, self.section.length_share
        if start is None or probe["length"] >= limit * start["length"]:
            return None
        return (
            f"length to zero: answers have {probe['length']:.1f} tokens, at the start they had {start['length']:.1f} "
            f"(watch.length_share {limit:g})"
        )

    def _certain(self, probe: dict[str, Any]) -> str | None:
        start, floor = self._start, self.section.entropy_floor
        if start is None or start["entropy"] is None or start["entropy"] < floor:
            return None
        if probe["entropy"] is None or probe["entropy"] >= floor:
            return None
        return (
            f"entropy: {probe['entropy']:.5f} nats per token, at the start {start['entropy']:.5f}: all samples of a prompt are "
            f"alike, so training has no signal (watch.entropy_floor {floor:g})"
        )

    def _falling(self) -> str | None:
        times, points = self.section.fall_times, self.section.fall_points
        if not times or len(self.history) <= times:
            return None
        before, recent = self.history[:-times], self.history[-times:]
        best = max(line["probe"]["macro_f1"] for line in before)
        if any(line["probe"]["macro_f1"] > best - points + ROUNDING for line in recent):
            return None
        for part, reward in (("training", "the training reward"), ("probe", "the reward on the probe")):
            was, now = _mean_reward(before[-times:], part), _mean_reward(recent, part)
            if was is not None and now is not None and now > was:
                return (
                    f"{reward} rose from {was:.3f} to {now:.3f} while the probe's Macro-F1 fell to "
                    f"{recent[-1]['probe']['macro_f1']:.3f}: {times} evaluations in a row at least {points:g} below its best "
                    f"{best:.3f} (watch.fall_points, watch.fall_times)"
                )
        return None


def _mean_reward(lines: Sequence[dict[str, Any]], part: str) -> float | None:
    """Mean reward of `part`, "training" or "probe".

    Dynamic sampling keeps the training reward near the middle, so the rule also checks the probe. dpo and kto log a reward margin
    instead of a training reward.
    """
    known = [line.get(part, {}) for line in lines]
    rewards = [one[name] for one in known for name in ("reward", "margin") if one.get(name) is not None]
    return sum(rewards) / len(rewards) if rewards else None


def preflight_rollouts(
    groups: Sequence[Sequence[Answer]],
    rewards: Sequence[Sequence[float | None]],
    labels: Sequence[str] | None = None,
    console: Console | None = None,
    *,
    grouped: bool = True,
) -> list[tuple[str, str]]:
    """Prints and returns (name, value) rows about G groups of answers before step 1.

    rewards: [G][n] totals, None if the reward abstains; labels: [G] gold tiers, for the pass rate and the number of all-right
    and all-wrong groups; grouped: advantages are relative to the group (GRPO), otherwise to a value estimate (PPO). Raises
    LoreError if every answer is truncated, or if every group is a zero-advantage group (not grouped: if all rewards are equal),
    because training would have no signal.
    """
    answers = [answer for group in groups for answer in group]
    known = [[value for value in row if value is not None and not math.isnan(value)] for row in rewards]
    truncated, failed = sum(answer.truncated for answer in answers), sum(answer.tier is None for answer in answers)
    spread = sum(map(_differ, known))
    length = sum(answer.tokens for answer in answers) / max(len(answers), 1)
    rows = [
        ("prompts", f"{len(groups):,} with {len(answers):,} answers"),
        ("mean length", f"{length:.1f} tokens"),
        ("truncated", _of(truncated, len(answers))),
        ("format failures", _of(failed, len(answers))),
        ("groups with spread", _of(spread, len(groups))),
    ]
    if labels is not None:
        right = [[answer.tier == label for answer in group] for group, label in zip(groups, labels, strict=True)]
        rows.insert(4, ("pass rate", _of(sum(map(sum, right)), len(answers))))
        rows.append(("groups all right", _of(sum(map(all, right)), len(groups))))
        rows.append(("groups all wrong", _of(sum(not any(row) for row in right), len(groups))))
    table = Table(show_header=False, title="answers before step 1", title_justify="left")
    for name, value in rows:
        table.add_row(name, value)
    (console or Console()).print(table)
    if answers and truncated == len(answers):
        raise LoreError(
            f"All {len(answers):,} answers to {len(groups):,} prompts are truncated at {length:.0f} tokens on average, so none "
            "has a verdict and all get the same reward.\nAllow longer answers, or start from a judge that ends its answers "
            "(stage sft)."
        )
    total = [value for row in known for value in row]
    if not (spread if grouped else _differ(total)):
        head, why = "None of", "has answers with different rewards, so every advantage is zero"
        if not grouped:
            head, why = "All answers of", "have the same reward"
        found = f"rewards from {min(total):g} to {max(total):g}" if total else "no reward could judge any of them"
        raise LoreError(
            f"{head} {len(groups):,} groups ({len(answers):,} answers, {failed:,} without a verdict; {found}) {why}: the model "
            "would learn nothing.\n"
            "Choose harder or easier pairs, raise the temperature or the answers per prompt, start from another judge, or use "
            "rewards that distinguish these answers."
        )
    return rows


def _differ(rewards: Sequence[float]) -> bool:
    return len(rewards) > 1 and max(rewards) - min(rewards) > ROUNDING


def _of(count: int, whole: int) -> str:
    return f"{count:,} of {whole:,} ({count / max(whole, 1):.0%})"
