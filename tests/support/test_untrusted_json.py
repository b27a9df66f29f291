"""JSON from others: every odd text is a ValueError at once, and each reader of a damaged file names it."""

import json

import pytest
import yaml

from lore.data.importers.rair import attributes_of
from lore.data.importers.table import _entries
from lore.data_synth.shop.write import write_world
from lore.engines.config import ModelSection
from lore.judge.card import check_card
from lore.run.launch import accelerate_arguments
from lore.run.launch_settings import accelerate_config, source_of
from lore.support.errors import LoreError
from lore.support.untrusted_json import parse_json, parse_object, read_object

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A gigabyte of values from half a kilobyte of YAML."""
ODD = {
    "empty": b"",
    "cut": b'{"a": 1',
    "text after it": b"{} {}",
    "python": b"{'a': 1}",
    "no UTF-8": b'{"a": "\xff"}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "two values of a key": b'{"a": 1, "a": 2}',
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_json_is_a_value_error_and_an_object_is_whole(text, tmp_path):
    with pytest.raises(ValueError):
        parse_json(text)
    (tmp_path / "x").write_bytes(text)
    with pytest.raises(LoreError, match="x is damaged .*, so all is lost.\nWeep"):
        read_object(tmp_path / "x", "all is lost", "Weep")


@pytest.mark.parametrize(
    "text", ["[1]", "null", "NaN", '{"a": NaN}', '{"a": ' + "9" * 400 + "}", '{"a": "\\ud83d"}', '{"\\udc00": 1}']
)
def test_an_object_that_lore_does_not_write_is_damaged(text):
    parse_json(text)
    with pytest.raises(ValueError):
        parse_object(text)


def test_long_integers_are_floats_or_what_the_reader_asks_for():
    assert parse_json("[1, 12345678901234567890, 123456789012345678901]") == [1, 12345678901234567890, 1.2345678901234568e20]
    assert parse_json("[-7, " + "9" * 5000 + "]", long_integer=str) == [-7, "9" * 5000]
    assert parse_json('{"a": 1, "a": 1}') == {"a": 1}


@pytest.mark.parametrize("digits", [21, 400, 5000])
def test_a_long_number_of_an_item_keeps_its_digits(digits):
    cell = '{"ean": ' + "9" * digits + ', "pack": [1, 2]}'
    assert attributes_of(cell) == [("ean", "9" * digits), ("pack", "1, 2")]
    assert _entries(cell) == [("ean", "9" * digits), ("pack", [1, 2])]


@pytest.mark.parametrize("cell", ['{"colour": "red", "colour": "blue"}', '{"a":' * 100_000], ids=["doubled", "deep"])
def test_a_cell_that_two_readers_would_read_differently_is_no_attribute(cell):
    with pytest.raises(ValueError):
        attributes_of(cell)
    assert _entries(cell) == [cell]


@pytest.mark.parametrize("text", [*ODD.values(), b"[1]", b"{}", b'{"renderer_hash": "a", "rubric": "b", "base": "c"}'])
def test_a_damaged_card_of_a_judge_is_named(text, tmp_path):
    (tmp_path / "lore.json").write_bytes(text)
    with pytest.raises(LoreError, match=r"lore\.json is damaged .*it is unknown how the judge was trained.*\nCopy"):
        check_card(ModelSection(name=str(tmp_path)), "hash", "judge")


@pytest.mark.parametrize("text", [*ODD.values(), b"[1]"])
def test_a_damaged_note_of_a_shop_is_named(text, tmp_path):
    (tmp_path / "world.json").write_bytes(text)
    with pytest.raises(LoreError, match="world.json cannot be read .*pass --force"):
        write_world(tmp_path, pairs=10)
    assert [path.name for path in tmp_path.iterdir()] == ["world.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "aliases .* that expand to over"),
        ("[" * 5000, "too many nested brackets|nested deeper"),
        ("use_cpu: [", "is not valid YAML"),
        ("use_cpu: !!python/object:os.system x", "tag"),
        ("- 1", "holds list .*where accelerate reads keys with values"),
        ("7", "holds int 7, where"),
        ("a: " + "9" * 5000, "digits"),
        ("use_cpu: true\nuse_cpu: false", "already given on line 1"),
    ],
    ids=["bomb", "deep", "cut", "tag", "list", "number", "digits", "doubled"],
)
def test_an_odd_accelerate_config_is_named(text, said, tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    monkeypatch.setenv("LORE_ACCELERATE_CONFIG", str(path))
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for read in (
        lambda: accelerate_arguments("x.yaml", [], [], str(path), None),
        lambda: source_of("ACCELERATE_MIXED_PRECISION", "mixed_precision"),
    ):
        with pytest.raises(LoreError, match=f"(?s){path}.*({said})"):
            read()


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "false", "no", "off", "null"])
def test_a_switch_of_an_accelerate_config_means_what_accelerate_reads(word, tmp_path, monkeypatch):
    monkeypatch.setattr("lore.run.launch.visible_gpus", lambda: 4)
    path = tmp_path / "config.yaml"
    path.write_text(f"num_machines: 1\nbase: &base {{a: 1}}\ndeepspeed_config: *base\nuse_cpu: {word}\n")
    on_cpu = bool(yaml.safe_load(path.read_text())["use_cpu"])
    assert ("--num_processes" in accelerate_arguments("x.yaml", [], [], str(path), None)) is not on_cpu
    assert accelerate_config(path)["deepspeed_config"] == {"a": 1}


def test_a_card_beside_weights_reads_as_before(tmp_path):
    (tmp_path / "lore.json").write_text(json.dumps({"renderer_hash": "h", "rubric": "b", "prompt": {}, "base": "c"}))
    check_card(ModelSection(name=str(tmp_path)), "h", "judge")
    with pytest.raises(LoreError, match="was trained with renderer h and would now be asked with other"):
        check_card(ModelSection(name=str(tmp_path)), "other", "judge")


@pytest.mark.parametrize("text", ["NaN", '{"a": [Infinity]}', "[-Infinity]"])
def test_constants_of_python_are_no_json_where_that_matters(text):
    parse_json(text)
    with pytest.raises(ValueError, match="no number of JSON"):
        parse_json(text, constants=False)


@pytest.mark.parametrize(("text", "depth"), [("1", 0), ("[]", 1), ('{"a": [{}, 1], "b": 2}', 3), ("[[[[1], 2]]]", 4)])
def test_nested_brackets_are_counted(text, depth):
    assert parse_json(text, depth=depth) == json.loads(text)
    if depth:
        with pytest.raises(ValueError, match=f"more than {depth - 1} deep"):
            parse_json(text, depth=depth - 1)
