"""Verdicts as few bytes, for the cache in memory and in Redis: 60 for a verdict of four tiers without a reason.

    check, layout, tier, photo, stored_seconds | probabilities, float64 | the rest as JSON, where there is any

The judge is not in them: the place where they are kept belongs to one judge.
"""

import json
import math
import struct
from collections.abc import Sequence

from lore.judge.verdict import Verdict
from lore.online.answer import Cached

LAYOUT = 1
PLAIN, SCORED = 0, 1
CHECK_BYTES = 8
PHOTOS = ("none", "seen", "hidden", "failed")
MAX_BYTES = 2**20
"""Of a verdict; longer ones are not kept."""
_HEAD = struct.Struct(f"<{CHECK_BYTES}sBBBBd")


class VerdictBytes:
    """Packs and unpacks the verdicts of one judge. Exact: what is unpacked equals what was packed, except for pair_id (empty),
    source (cache) and seconds (None)."""

    def __init__(self, judge_id: str, tier_ids: Sequence[str]):
        self.judge_id, self.tier_ids = judge_id, list(tier_ids)
        self._tiers = {tier: at for at, tier in enumerate(tier_ids)}
        self._probabilities = struct.Struct(f"<{len(tier_ids)}d")

    def takes(self, verdict: Verdict) -> bool:
        """Whether a verdict may be kept: no failure, and of this judge."""
        return verdict.failure is None and verdict.tier in self._tiers and verdict.judge_id == self.judge_id

    def pack(self, content: bytes, verdict: Verdict, stored_seconds: float | None) -> bytes:
        """verdict: one that it `takes`. The first bytes of the content go along, so that the answer to another question is seen."""
        scored = PLAIN if verdict.probabilities is None else SCORED
        photo = PHOTOS.index(verdict.photo) if verdict.photo in PHOTOS else 0
        stored = math.nan if stored_seconds is None else stored_seconds
        packed = _HEAD.pack(content[:CHECK_BYTES], LAYOUT, scored, self._tiers[verdict.tier], photo, stored)
        if verdict.probabilities is not None:
            packed += self._probabilities.pack(*verdict.probabilities)
        rest = [verdict.rationale, verdict.mismatch, verdict.rules, verdict.text, verdict.tokens, verdict.detail]
        return packed if rest == ["", None, [], None, None, None] else packed + json.dumps(rest, ensure_ascii=False).encode()

    def unpack(self, content: bytes, packed: bytes) -> Cached | None:
        """None for bytes that `pack` did not write for this content and these tiers: other programs may write into a Redis."""
        try:
            check, layout, scored, tier, photo, stored = _HEAD.unpack_from(packed)
            if check != content[:CHECK_BYTES] or layout != LAYOUT or len(packed) > MAX_BYTES:
                return None
            verdict = Verdict("", self.tier_ids[tier], None, "", None, [], None, None, PHOTOS[photo], self.judge_id, None, "cache")
            end = _HEAD.size
            if scored:
                verdict.probabilities = list(self._probabilities.unpack_from(packed, end))
                end += self._probabilities.size
            if len(packed) > end:
                rest = json.loads(packed[end:])
                verdict.rationale, verdict.mismatch, verdict.rules, verdict.text, verdict.tokens, verdict.detail = rest
                if not _is_whole(verdict):
                    return None
            return Cached(verdict, None if math.isnan(stored) else stored)
        except (struct.error, ValueError, TypeError, IndexError, RecursionError):
            return None


def _is_whole(verdict: Verdict) -> bool:
    texts = (verdict.mismatch, verdict.text, verdict.detail)
    return (
        isinstance(verdict.rationale, str)
        and all(text is None or isinstance(text, str) for text in texts)
        and isinstance(verdict.rules, list)
        and all(isinstance(rule, str) for rule in verdict.rules)
        and (verdict.tokens is None or type(verdict.tokens) is int and 0 <= verdict.tokens < 2**62)
    )
