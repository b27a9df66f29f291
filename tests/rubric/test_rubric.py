"""Guards lore/rubric/rubric.py: shipped rubrics load, wrong files are reported whole, labels of sources find their tier."""

import copy
import re

import pytest
import yaml

from lore.config.yaml_text import MAX_BYTES
from lore.rubric.rubric import RUBRICS, Rubric, load_rubric, parse_rubric
from lore.support.errors import LoreError

SHIPPED = sorted(path.stem for path in RUBRICS.glob("*.yaml"))
SMALL = {
    "name": "small",
    "version": "1",
    "tiers": [
        {"id": "bad", "name": "Bad", "meaning": "no", "relevant": False, "value": 1},
        {"id": "good", "name": "Good", "meaning": "yes", "relevant": True, "value": 3, "aliases": ["Fine"]},
    ],
    "dimensions": [{"id": "colour", "meaning": "its colour"}],
    "rules": [{"id": "colour-same", "dimension": "colour", "tier": "good", "principle": "the same"}],
    "mismatch_tiers": ["bad"],
}


def changed(path: str, value) -> dict:
    """SMALL with one value at a dotted path set, or removed with `...`."""
    raw = copy.deepcopy(SMALL)
    *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = raw
    for key in way:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return raw


def errors_of(raw) -> str:
    with pytest.raises(LoreError) as error:
        parse_rubric(raw, where="r.yaml")
    return str(error.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_rubric_loads_and_is_whole(name):
    rubric = load_rubric(name)
    assert rubric.name == name
    assert rubric.relevant_mask == sorted(rubric.relevant_mask)
    assert {rule.dimension for rule in rubric.rules} == {dimension.id for dimension in rubric.dimensions}
    assert all(rule.examples for rule in rubric.rules)


@pytest.mark.parametrize(
    ("name", "tier_ids", "relevant"),
    [
        ("rair", ["L1", "L2", "L3", "L4"], [False, False, True, True]),
        ("crowdflower", ["1", "2", "3", "4"], [False, False, True, True]),
        ("homedepot", ["1", "2", "3"], [False, True, True]),
        ("wands", ["Irrelevant", "Partial", "Exact"], [False, True, True]),
        ("esci", ["I", "C", "S", "E"], [False, False, True, True]),
    ],
)
def test_source_rubrics_have_their_sources_own_scale(name, tier_ids, relevant):
    rubric = load_rubric(name)
    assert rubric.tier_ids == tier_ids
    assert rubric.relevant_mask == relevant
    assert [rubric.index(tier_id) for tier_id in tier_ids] == list(range(len(tier_ids)))


def test_rair_covers_its_dimensions_in_both_languages():
    rubric = load_rubric("rair")
    assert len(rubric.dimensions) == 18
    assert 60 <= len(rubric.rules) <= 75
    assert rubric.mismatch_tiers == ["L2"]
    by_dimension = {d.id: {r.tier for r in rubric.rules if r.dimension == d.id} for d in rubric.dimensions}
    assert all({"L2", "L4"} <= tiers for tiers in by_dimension.values())
    texts = [f"{e.query} {e.item}" for rule in rubric.rules for e in rule.examples]
    chinese = sum(bool(re.search(r"[\u4e00-\u9fff]", text)) for text in texts)
    assert 0.3 < chinese / len(texts) < 0.7
    assert all(len(rule.principle) <= 160 and len(rule.examples) <= 2 for rule in rubric.rules)


@pytest.mark.parametrize(
    ("name", "label", "tier_id"),
    [
        ("rair", "L3", "L3"),
        ("rair", " l4 ", "L4"),
        ("rair", 2, "L2"),
        ("crowdflower", "4", "4"),
        ("crowdflower", 3.0, "3"),
        ("homedepot", "2.67", "3"),
        ("homedepot", 2.33, "2"),
        ("homedepot", 2.5, "2"),
        ("homedepot", 1.5, "1"),
        ("homedepot", "3.00", "3"),
        ("wands", "Exact", "Exact"),
        ("wands", "Relevant", "Exact"),
        ("wands", "Not relevant", "Irrelevant"),
        ("esci", "S", "S"),
        ("esci", "Complement", "C"),
    ],
)
def test_labels_find_their_tier(name, label, tier_id):
    assert load_rubric(name).tier_of(label) == tier_id


@pytest.mark.parametrize(
    ("name", "label"),
    [("rair", "L5"), ("homedepot", 3.1), ("homedepot", "nan"), ("homedepot", ""), ("homedepot", None), ("esci", 1)]
    + [("crowdflower", True), ("crowdflower", "inf"), ("crowdflower", "0")],
)
def test_a_label_off_the_scale_is_an_error(name, label):
    with pytest.raises(LoreError, match=f"no tier in rubric {name}"):
        load_rubric(name).tier_of(label)


def test_an_unknown_tier_names_the_nearest():
    with pytest.raises(LoreError, match="Nearest: 'Partial'"):
        load_rubric("wands").index("Partal")


def test_all_errors_of_a_file_come_at_once():
    raw = copy.deepcopy(SMALL)
    raw["descripton"] = "typo"
    raw["language"] = "fr"
    raw["tiers"] += [{"id": "good", "name": "Again", "meaning": "x", "relevant": "yes"}]
    raw["tiers"][0]["aliases"] = ["fine"]
    raw["rules"] += [
        {"id": "a b", "dimension": "color", "tier": "goood", "principle": " "},
        {"id": "colour-same", "dimension": "colour", "tier": "good", "principel": "x"},
    ]
    raw["mismatch_tiers"] = ["badd"]
    message = errors_of(raw)
    for part in [
        "r.yaml has 13 errors",
        "descripton: unknown key",
        "language: found 'fr' (str), expected 'en' or 'zh'",
        "tiers[2].relevant: found 'yes' (str), expected a valid boolean",
        "tiers[2].id: 'good' is already the id of tiers[1]",
        "already means tier",
        "rules[1].id: found 'a b' (str), expected one word",
        "rules[1].principle: found ' ' (str), expected a text that is not empty",
        "rules[1].dimension (a b): 'color' is not a dimension of this rubric. Nearest: 'colour'.",
        "rules[1].tier (a b): 'goood' is not a tier of this rubric. Nearest: 'good'.",
        "rules[2].principle: missing",
        "rules[2].principel: unknown key; expected one of id, dimension, tier, principle",
        "Nearest: 'principle'.",
        "rules[2].id: 'colour-same' is already the id of rules[0]",
        "mismatch_tiers[0]: 'badd' is not a tier of this rubric. Nearest: 'bad'.",
    ]:
        assert part in message


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        ("name", ..., "name: missing"),
        ("version", 1, "version: found 1 (int), expected text (put it in quotes)"),
        ("tiers.1", ..., "tiers: found 1, expected at least 2"),
        ("tiers.0.relevant", True, "every tier is relevant"),
        ("tiers.1.relevant", False, "no tier is relevant"),
        ("tiers.0.id", "a<b", "one word"),
        ("tiers.0.id", "a>b", "one word"),
        ("tiers.0.id", "a b", "one word"),
        ("tiers.0.id", "a\u200bb", "one word"),
        ("tiers.0.id", "", "one word"),
        ("tiers.0.id", 1, "put it in quotes"),
        ("tiers.0.id", "GOOD", "already the id"),
        ("tiers.0.value", 5, "do not increase"),
        ("tiers.0.value", float("nan"), "finite"),
        ("tiers.1.aliases", ["bad"], "already means tier 'bad'"),
        ("tiers", "bad, good", "tiers: found 'bad, good' (str), expected a valid list"),
        ("tiers", [], "tiers: found 0"),
        ("rules.0.examples", [{"query": "q", "itm": "i"}], "rules[0].examples[0].itm: unknown key"),
        ("aggregate", "median", "aggregate"),
    ],
)
def test_each_kind_of_error_has_its_line(path, value, part):
    assert part in errors_of(changed(path, value))


def test_tiers_out_of_order_are_refused():
    raw = copy.deepcopy(SMALL)
    raw["tiers"].reverse()
    message = errors_of(raw)
    assert "a relevant tier comes before" in message
    assert "do not increase" in message


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_file_that_is_no_mapping_is_an_error(raw):
    assert "expected a mapping" in errors_of(raw)


def test_files_are_found_by_name_and_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    assert load_rubric(path) == load_rubric(str(path)) == parse_rubric(SMALL)
    with pytest.raises(LoreError, match="Nearest: 'crowdflower'"):
        load_rubric("crowdflowr")
    with pytest.raises(LoreError, match="does not exist"):
        load_rubric(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: a\nname: b\n", "r.yaml:2: name\n  found:    'b', already given on line 1: 'a'\n  expected: each key once"),
        ("name: &x a\nversion: *x\n", "r.yaml:2\n  found:    anchors and aliases are not allowed"),
        ("name: [a\n", "not valid YAML"),
        ("name: a\nversion: !!python/object/apply:os.system [ls]\n", "r.yaml:2\n  found:    the tag '!!python/object/apply"),
        ("name: !!python/name:int x\n", "the tag '!!python/name:int'"),
        ("!!python/name:str name: x\n", "the tag '!!python/name:str'"),
        ("name: !foo bar\n", "the tag '!foo' is not allowed"),
        ("name: !<tag:else.org,2002:str> bar\n", "the tag 'tag:else.org,2002:str' is not allowed"),
        ("tiers: !!set {a, b}\n", "the tag '!!set' is not allowed"),
        ("tiers: !!omap [a: 1]\n", "the tag '!!omap' is not allowed"),
        ("tiers: !!map [a, b]\n", "the tag '!!map' is not allowed"),
        ("tiers: !!seq {a: b}\n", "the tag '!!seq' is not allowed"),
        ("name: !!binary aGk=\n", "the tag '!!binary' is not allowed"),
        ("name: !!timestamp 2024-01-01\n", "the tag '!!timestamp' is not allowed"),
        ("name: !!int red\n", "found:    !!int 'red'\n  expected: a value without the tag !!int"),
        ("name: !!bool maybe\n", "!!bool 'maybe'"),
        ("name: !!float abc\n", "!!float 'abc'"),
        ("name: !!null abc\n", "!!null 'abc'"),
        ("name: a\n<<: {version: b}\n", "r.yaml:2\n  found:    the merge key <<"),
        ("? [a, b]\n: 1\n", "r.yaml:1\n  found:    a list or a mapping as a key\n  expected: a key of plain text"),
        ("yes: 1\nname: x\n", "yes: unknown key"),
        ("1: 1\nname: x\n", "1: unknown key"),
        ("~: 1\nname: x\n", "~: unknown key"),
        ("? \n: 1\nname: x\n", "unknown key"),
        ("name: 2020-13-45\n", "version: missing"),
        ("name: " + "9" * 5000 + "\n", "r.yaml:1\n  found:    a number of 5,000 digits"),
        ("name: 1:30\nversion: 0o17\n", "tiers: missing"),
        ("name: a\n\tversion: b\n", "r.yaml:2"),
        ("name:\n  - a\n\t- b\n", "indent with spaces"),
        ("name: a\n---\nname: b\n", "r.yaml:2\n  found:    a second document"),
        ("name: a\nversion: \0\n", "r.yaml:2\n  found:    the character U+0000"),
        ("", "expected a mapping"),
        ("- name: a\n", "expected a mapping"),
        ("%YAML 3.0\n---\nname: a\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("[" * 100_000, "not valid YAML"),
        ("{a: " * 100_000, "not valid YAML"),
        ("- " * 100_000, "not valid YAML"),
        ("? " * 100_000, "not valid YAML"),
        ("a: " + "[" * 40 + "]" * 40, "nested deeper than 32 levels"),
        (b"name: \xff\xfe\n", "not valid YAML"),
        ("name: a\n".encode("utf-16"), "byte 0 is not UTF-8"),
        ("name: a\n".encode("utf-16-le"), "the character U+0000"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_files_that_are_not_plain_yaml_are_refused(tmp_path, text, part):
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LoreError, match=re.escape(part)):
        load_rubric(path)


def test_a_rubric_keeps_the_words_of_yaml_1_1_for_true_and_false(tmp_path):
    path = tmp_path / "r.yaml"
    text = yaml.safe_dump(SMALL, sort_keys=False).replace("relevant: true", "relevant: yes")
    text = text.replace("relevant: false", "relevant: Off")
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert "relevant: yes" in text and "relevant: Off" in text
    assert load_rubric(path).hash == parse_rubric(SMALL).hash


@pytest.mark.parametrize("value", [".nan", ".inf", "1e999", "-.Inf", "9" * 350])
def test_a_number_that_is_not_finite_is_named(tmp_path, value):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(changed("rules.0.params", {"x": 12.5})).replace("12.5", value))
    with pytest.raises(LoreError, match=r"rules\[0\].params.x: found .*, expected"):
        load_rubric(path)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(LoreError, match="at most 1,000,000"):
        load_rubric(path)


def test_the_hash_is_of_the_content_alone(tmp_path):
    rubric = parse_rubric(SMALL)
    shuffled = {key: SMALL[key] for key in reversed(SMALL)} | {"language": "en"}
    assert parse_rubric(shuffled).hash == rubric.hash
    assert parse_rubric(changed("tiers.0.meaning", "nothing")).hash != rubric.hash
    assert parse_rubric(changed("rules.0.examples", [{"query": "q", "item": "i"}])).hash != rubric.hash
    assert Rubric.model_validate(rubric.model_dump()).hash == rubric.hash


def test_a_whole_number_with_a_point_is_the_tier_of_that_number():
    tiers = [{"id": str(n), "name": f"n{n}", "meaning": "m", "relevant": n > 0} for n in range(3)]
    rubric = parse_rubric({"name": "x", "version": "1", "tiers": tiers})
    assert [rubric.tier_of(label) for label in (0.0, "1.0", 2)] == ["0", "1", "2"]
    for label in ("1.5", "nan", "inf", "3.0"):
        with pytest.raises(LoreError, match="has no tier"):
            rubric.tier_of(label)
