"""Progressive synthesis: knowledge, then the item's properties, then the rules, merged into one short rationale.

After LORE (arXiv 2512.03025): knowledge injection, image understanding, rule application, in this order. Left out: long free-form
chains of thought, which the paper finds unnecessary. Each step is a list that can be checked line by line.

Attempts: every pair gets `samples` attempts at once. If none passes, more follow up to `most`, or up to `most_hard` if the
attempts disagree about the tier or the pair is in a hard slice (rejection sampling). Then, if the recipe allows it, some
attempts see the human label.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, replace

from lore.codec.judgement import render_demands
from lore.data.images import ImageError
from lore.data.pair import Pair
from lore.data_synth.synthesis import knowledge, multimodal, rules
from lore.data_synth.synthesis.budget import BudgetReached
from lore.data_synth.synthesis.config import SynthesizeRecipe
from lore.data_synth.synthesis.facts import Facts
from lore.data_synth.synthesis.teachers import ByModel, Teacher, Work
from lore.data_synth.synthesis.trace import (
    AnswerCut,
    Attempt,
    Check,
    Draft,
    Trace,
    Unreadable,
    failure_of,
    one_object,
    whole_answer,
)
from lore.data_synth.synthesis.verify import Verifier
from lore.engines.engine import RequestRefused
from lore.rubric.demand import Demand
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.support.text import encodable


@dataclass
class Synthesis:
    """Turns a pair into a trace."""

    recipe: SynthesizeRecipe
    rubric: Rubric
    teacher: Teacher
    verifier: Verifier
    captioner: ByModel | None = None
    critic: ByModel | None = None
    facts: Facts | None = None

    async def trace(self, pair: Pair, work: Work) -> Trace:
        """Makes attempts until one is accepted. Returns that one, or the rejected one with the fewest failed checks. Raises
        BudgetReached if the budget ends first, EndpointFailed for a request without a usable answer, LoreError for a label
        that is not a tier of the rubric.
        """
        attempts, drafts = self.recipe.attempts, []
        self.rubric.index(pair.label)  # no verdict can match a label of another rubric, so it raises before any request
        if not self.recipe.description:
            pair = replace(pair, description=None)
        if attempts.hint != "always":
            together = [self.attempt(pair, work, draw, None) for draw in range(attempts.samples if self.teacher.repeats else 1)]
            drafts += await _all(together)
            self._agree(drafts)
            while not _settled(drafts) and self.teacher.repeats and len(drafts) < self._most(pair, drafts):
                drafts.append(await self.attempt(pair, work, len(drafts), None))
                self._agree(drafts)
        if not _settled(drafts) and attempts.hint != "never" and not self._is_program:
            for _ in range(attempts.hinted if self.teacher.repeats else 1):
                drafts.append(await self.attempt(pair, work, len(drafts), pair.label))
                if _settled(drafts):
                    break
        kept = _chosen(drafts) or min(drafts, key=lambda draft: (bool(draft.failure), len(draft.failed)))
        if all(draft.unanswered for draft in drafts):
            work.unanswered[pair.pair_id] = kept.failure
        return self._as_trace(pair, kept, drafts)

    async def attempt(self, pair: Pair, work: Work, draw: int, hint: str | None) -> Draft:
        """One pass through the steps, with the checks of its result."""
        draft = Draft(draw, hint is not None)
        step = "knowledge"
        try:
            facts = self.facts.about(pair.query) if self.facts else []
            reply = await self.teacher.knowledge(work, pair, facts, draw)
            draft.replies.append(reply)
            draft.wishes = knowledge.read(whole_answer(reply), self.rubric)
            step = "caption"
            photo = pair.image is not None and self.recipe.photos != "none"
            if photo:
                self._check_takes_images(pair)
            if photo and self.recipe.photos == "caption":
                reply = await (self.captioner or self.teacher).caption(work, pair, draw)
                draft.replies.append(reply)
                draft.caption, photo = multimodal.read_caption(whole_answer(reply)), False
            step = "multimodal"
            more = self.facts.about(_item_text(pair)) if self.facts else []
            draft.facts = list(dict.fromkeys(fact.text for fact in [*facts, *more]))
            reply = await self.teacher.multimodal(work, pair, draft.wishes, more, draw, caption=draft.caption, photo=photo)
            draft.replies.append(reply)
            draft.evidence = multimodal.read(whole_answer(reply), draft.wishes)
            step = "rules"
            wishes = draft.wishes[: len(draft.evidence)]
            reply = await self.teacher.rules(work, pair, wishes, draft.evidence, draw, hint=hint)
            draft.replies.append(reply)
            draft.rulings, draft.verdicts = rules.read(whole_answer(reply), wishes)
        except (Unreadable, RequestRefused, ImageError) as error:  # affects this pair only, so the run continues
            draft.failure, draft.hopeless = failure_of(step, error), isinstance(error, ImageError)
            draft.unanswered = isinstance(error, AnswerCut) or not isinstance(error, Unreadable)
            return draft
        draft.tier = draft.verdicts[-1]
        self.merge(draft)
        draft.checks = self.verifier.check(draft, pair)
        if self.critic is not None and draft.accepted:
            await self._critique(draft, pair, work)
        return draft

    def _check_takes_images(self, pair: Pair) -> None:
        role = "captioner" if self.captioner is not None else "teacher"
        if not getattr(self.captioner or self.teacher, "takes_images", True):
            raise LoreError(
                f"pair {pair.pair_id} has a photo, but the model of {role} does not accept images.\n"
                "Name a vision-language model, set photos: caption with such a captioner, or photos: none to use only texts."
            )

    def merge(self, draft: Draft) -> None:
        """Merges the three steps into demands and a short rationale. If it is too long, fulfilled demands are dropped first."""
        steps = zip(draft.wishes, draft.evidence, draft.rulings, strict=False)
        draft.demands = [
            Demand(wish.dimension, wish.wanted, found.found, found.source, ruling.rule, ruling.tier)
            for wish, found, ruling in steps
        ]
        kept, best, leave_out = list(draft.demands), self.rubric.tier_ids[-1], self.recipe.rationale.leave_out
        while self.verifier.length_of(render_demands(kept, leave_out)) > self.recipe.rationale.max_tokens:
            met = [at for at, demand in enumerate(kept) if demand.tier == best]
            if not met or len(kept) == 1:
                break
            del kept[met[-1]]
        draft.rationale = render_demands(kept, leave_out)

    async def _critique(self, draft: Draft, pair: Pair, work: Work) -> None:
        prompts = self.critic.prompts
        values = {"caption": draft.caption, "rationale": draft.rationale, "tier": draft.tier}
        messages = prompts.messages("critic", item=prompts.item(pair, False), **values)
        try:
            reply = await self.critic.ask(work, "critic", pair, messages, draft.draw)
            draft.replies.append(reply)
            answer = one_object(whole_answer(reply), "accept")
            why = "" if answer["accept"] is True else encodable(str(answer.get("why") or "refused"))[:200]
        except RequestRefused as error:  # no judgement of the critic: the next start asks it again
            draft.failure, draft.unanswered = failure_of("critic", error), True
            return
        except Unreadable as error:
            why = f"no answer that can be read: {error}"
        draft.checks.append(Check("critic", why))

    @property
    def _is_program(self) -> bool:
        return self.recipe.teacher.kind == "program"

    def _most(self, pair: Pair, drafts: list[Draft]) -> int:
        attempts = self.recipe.attempts
        tiers = {draft.tier for draft in drafts if draft.tier is not None}
        hard = len(tiers) > 1 or not set(attempts.hard_slices).isdisjoint(pair.slices)
        return attempts.most_hard if hard else attempts.most

    def _agree(self, drafts: list[Draft]) -> None:
        """Self-consistency as one more check: the share of a pair's attempts that agree with an attempt's verdict."""
        attempts = self.recipe.attempts
        if attempts.samples == 1:
            return
        tiers = Counter(draft.tier for draft in drafts)
        for draft in drafts:
            share = tiers[draft.tier] / len(drafts)
            agrees = share >= attempts.agreement
            why = "" if agrees else f"{tiers[draft.tier]} of {len(drafts)} attempts say {draft.tier}"
            draft.checks = [check for check in draft.checks if check.name != "agreement"] + [Check("agreement", why)]

    def _as_trace(self, pair: Pair, kept: Draft, drafts: list[Draft]) -> Trace:
        decisive = None
        if kept.demands:
            decisive = next((d for d in kept.demands if d.tier == kept.tier), None)
        fails = decisive is not None and kept.tier in self.rubric.mismatch_tiers
        return Trace(
            pair_id=pair.pair_id,
            query=pair.query,
            title=pair.title,
            image=(pair.image.get("path") or "(bytes in the pairs file)") if pair.image else None,
            label=pair.label,
            slices=pair.slices,
            accepted=kept.accepted,
            tier=kept.tier,
            hinted=kept.hinted,
            rationale=kept.rationale,
            mismatch=decisive.dimension if fails else None,
            rules=[decisive.rule] if decisive is not None and decisive.rule else [],
            demands=kept.demands,
            words=[wish.words for wish in kept.wishes],
            caption=kept.caption,
            facts=kept.facts,
            failure=kept.failure,
            checks=kept.checks,
            attempts=[Attempt(draft.draw, draft.hinted, draft.tier, draft.failed) for draft in drafts],
            replies=[reply for draft in drafts for reply in draft.replies],
        )


async def _all(attempts: list) -> list[Draft]:
    """Results in order. If one fails, the others are awaited first, so their answers are not lost."""
    results = await asyncio.gather(*attempts, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise next((error for error in errors if not isinstance(error, BudgetReached)), errors[0])
    return results


def _chosen(drafts: list[Draft]) -> Draft | None:
    return next((draft for draft in drafts if draft.accepted), None)


def _settled(drafts: list[Draft]) -> bool:
    """Whether no further attempt can help: one was accepted, or the pair's photo cannot be opened."""
    return _chosen(drafts) is not None or any(draft.hopeless for draft in drafts)


def _item_text(pair: Pair) -> str:
    return " \n ".join([pair.title, *pair.attributes.values(), pair.brand or "", pair.description or ""])
