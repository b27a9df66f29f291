"""Errors between the parts of a rubric: duplicate ids, rules that name unknown tiers, scales with fewer than two tiers.

The checks use plain data, so that their errors are reported together with those of single fields. They skip values of a wrong
type, which the field checks report.
"""

import itertools
from typing import Any

from lore.support.nearest import nearest_hint

MAX_ERRORS = 50  # of one kind; each looks for the nearest of all names


def reference_errors(raw: dict[str, Any]) -> list[str]:
    """One line per error, at most MAX_ERRORS of each kind."""
    tiers, dimensions, rules = (_dicts(raw.get(key)) for key in ("tiers", "dimensions", "rules"))
    errors = []
    for key, parts in (("tiers", tiers), ("dimensions", dimensions), ("rules", rules)):
        errors += _double_ids(key, parts)
    if isinstance(raw.get("tiers"), list) and len(raw["tiers"]) < 2:
        errors.append(f"tiers: found {len(raw['tiers'])}, expected at least 2: a scale needs a worse and a better end")
    errors += _relevance_errors(tiers) + _label_errors(tiers)
    tier_ids = [tier["id"] for _, tier in tiers if isinstance(tier.get("id"), str)]
    dimension_ids = [dimension["id"] for _, dimension in dimensions if isinstance(dimension.get("id"), str)]
    named = [(f"rules[{i}].tier ({rule.get('id')})", "tier", rule.get("tier")) for i, rule in rules]
    named += [(f"rules[{i}].dimension ({rule.get('id')})", "dimension", rule.get("dimension")) for i, rule in rules]
    mismatch_tiers = raw.get("mismatch_tiers")
    listed = enumerate(mismatch_tiers if isinstance(mismatch_tiers, list) else [])
    named += [(f"mismatch_tiers[{i}]", "tier", name) for i, name in listed]
    known = {"tier": frozenset(tier_ids), "dimension": frozenset(dimension_ids)}
    unknown = [one for one in named if isinstance(one[2], str) and one[2] not in known[one[1]]]
    for where, key, name in unknown[:MAX_ERRORS]:
        hint = nearest_hint(name, tier_ids if key == "tier" else dimension_ids)
        errors.append(f"{where}: '{name}' is not a {key} of this rubric.{hint}")
    return errors


def _double_ids(key: str, parts: list[tuple[int, dict]]) -> list[str]:
    errors, first = [], {}
    for i, part in parts:
        if isinstance(part.get("id"), str):
            earlier = first.setdefault(part["id"].casefold(), i)
            if earlier != i:
                errors.append(f"{key}[{i}].id: '{part['id']}' is already the id of {key}[{earlier}]; ids ignore case")
    return errors


def _relevance_errors(tiers: list[tuple[int, dict]]) -> list[str]:
    relevant = [tier.get("relevant") for _, tier in tiers]
    if len(relevant) < 2 or not all(isinstance(flag, bool) for flag in relevant):
        return []
    if len(set(relevant)) == 1:
        which = "every" if relevant[0] else "no"
        return [f"tiers: {which} tier is relevant; two-way accuracy needs tiers of both kinds"]
    if relevant != sorted(relevant):
        return ["tiers: a relevant tier comes before one that is not relevant; list the tiers worst first"]
    return []


def _label_errors(tiers: list[tuple[int, dict]]) -> list[str]:
    errors = []
    owner = {tier["id"].strip().casefold(): tier["id"] for _, tier in tiers if isinstance(tier.get("id"), str)}
    for i, tier in tiers:
        aliases = tier.get("aliases")
        for alias in aliases if isinstance(aliases, list) else []:
            if isinstance(alias, str):
                other = owner.setdefault(alias.strip().casefold(), tier.get("id"))
                if other != tier.get("id"):
                    errors.append(f"tiers[{i}].aliases: '{alias}' already means tier '{other}'")
    values = [tier["value"] for _, tier in tiers if type(tier.get("value")) in (int, float)]
    if any(not low < high for low, high in itertools.pairwise(values)):
        errors.append(f"tiers: values {values} do not increase; list the tiers worst first")
    return errors


def _dicts(parts: Any) -> list[tuple[int, dict]]:
    return [(i, part) for i, part in enumerate(parts) if isinstance(part, dict)] if isinstance(parts, list) else []
