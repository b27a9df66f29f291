"""RAIR: what gives the label away reaches no pair, and a bad photo costs only its row."""

import base64
import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image
from source_files import load, write_parquet

from lore.codec.prompt import PromptFormat
from lore.data.importers import open_source
from lore.data.importers.rair import attributes_of
from lore.data.pair_source import PairSource
from lore.data.parquet import read_pairs
from lore.data.section import JudgedDataSection
from lore.engines.chat import photo_of
from lore.support.errors import LoreError

SECRET = "搜主件返回主件，判定为L4"


def photo(color="red", size=(20, 20)) -> str:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def rair_rows() -> list[dict]:
    row = {
        "query": "狗胸背带大型犬",
        "title": "狗狗牵引绳泰迪胸背",
        "item_id": 623055365352,
        "groundtruth": "L4",
        "shop_name": "舒拜宠物用品旗舰店",
        "vqa_result": "一款骑士灰宠物牵引背带套装",
        "rule_list": f"1. 所属规则: 主配件匹配\n{SECRET}",
        "cpv_sku": json.dumps(
            {"是否可伸缩": "是", "品牌": "surepet/舒拜", "颜色": ["灰", "红"], "sku": {"尺寸": 3}}, ensure_ascii=False
        ),
        "subset": "general_set_image",
        "image_base64": photo(),
    }
    return [row, {**row, "query": "猫", "groundtruth": "L1", "image_base64": "", "cpv_sku": ""}]


def write_rair(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        return write_parquet(path, {name: [row[name] for row in rows] for name in rows[0]})
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_rair_local_files(tmp_path, suffix):
    pairs, _, rejected = load("rair", write_rair(tmp_path / f"rair{suffix}", rair_rows()), tmp_path)
    first, second = pairs
    assert rejected == []
    assert (first.item_id, first.shop, first.label, first.slices) == (
        "623055365352",
        "舒拜宠物用品旗舰店",
        "L4",
        ["general_set_image"],
    )
    assert first.attributes == {"是否可伸缩": "是", "品牌": "surepet/舒拜", "颜色": "灰, 红", "sku.尺寸": "3"}
    assert Image.open(io.BytesIO(first.image["bytes"])).size == (20, 20)
    assert (second.image, second.attributes) == (None, {})


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("caption", [False, True])
def test_rair_rule_list_reaches_no_field_and_the_caption_only_when_asked_for(tmp_path, suffix, caption):
    rows = [*rair_rows(), {**rair_rows()[0], "groundtruth": "L9"}]
    path = write_rair(tmp_path / f"rair{suffix}", rows)
    pairs, _, rejected = load("rair", path, tmp_path, options={"caption": caption})
    assert len(pairs) == 2 and len(rejected) == 1
    everything = str([asdict(p) for p in pairs]) + json.dumps(rejected, ensure_ascii=False)
    assert SECRET not in everything and "主配件匹配" not in everything
    assert ("骑士灰" in everything) == caption
    assert all(not p.rules and p.rationale is None for p in pairs)


def test_rair_bad_photos_and_bad_json_are_rejected(tmp_path):
    good = rair_rows()[0]
    bad = [
        {**good, "image_base64": "###"},
        {**good, "image_base64": base64.b64encode(b"no photo").decode()},
        {**good, "image_base64": photo()[:80]},
        {**good, "cpv_sku": "{'a': 1}"},
        {**good, "cpv_sku": "[1]"},
    ]
    path = write_rair(tmp_path / "rair.jsonl", [*bad, good])
    with open(path, "a") as file:
        file.write('{"query": \n[1]\n')
    pairs, _, rejected = load("rair", path, tmp_path)
    assert len(pairs) == 1
    assert [r["row"] for r in rejected] == [1, 2, 3, 4, 5, 7, 8]
    assert [r["reason"] for r in rejected] == ["image_corrupt"] * 3 + ["field_type"] * 4


def test_rair_rows_with_bad_photos_can_be_kept_and_are_reported_and_judged_as_text(tmp_path, capsys):
    good = rair_rows()[0]
    photos = ["###", base64.b64encode(b"no photo").decode(), photo()[:80], good["image_base64"], ""]
    rows = [{**good, "item_id": number, "image_base64": text} for number, text in enumerate(photos)]
    path = write_rair(tmp_path / "rair.parquet", rows)
    pairs, report, rejected = load("rair", path, tmp_path, keep_bad_photos=True)
    assert len(pairs) == 5 and rejected == []
    assert report.repairs["unreadable_photo"] == 3
    assert [line.split(": ")[0] for line in report.bad_photos] == [f"{path} row {row}" for row in (1, 2, 3)]

    states = [photo_of(pair, PromptFormat(), None)[1] for pair in pairs]
    assert states == ["failed", "failed", "failed", "seen", "none"]
    assert SECRET not in str([asdict(pair) for pair in pairs])

    section = JudgedDataSection(path=str(path), source="rair", rubric="rair", options={"keep_bad_photos": True})
    assert len(list(read_pairs(PairSource(section, tmp_path / "run").path))) == 5
    assert "3 photos cannot be read; their rows are kept" in capsys.readouterr().err
    section = JudgedDataSection(path=str(path), source="rair", rubric="rair")
    assert len(list(read_pairs(PairSource(section, tmp_path / "run").path))) == 2
    assert "3 of 5 rows were rejected (image_corrupt 3)" in capsys.readouterr().err


def test_rair_attribute_json_is_flattened():
    nested = {"cpv": [{"材质": "棉"}, {"材质": "麻"}], "a": None, "b": {"c": {"d": True}}}
    assert attributes_of(nested) == [("cpv.材质", "棉"), ("cpv.材质", "麻"), ("b.c.d", "True")]


HUB_CARD = """---
configs:
- config_name: Hard_Subset
  data_files: [{split: train, path: hard/*.parquet}]
- config_name: Visual_Subset
  data_files: [{split: train, path: visual/*.parquet}]
---
"""


def test_rair_as_a_hub_data_set_streams_the_named_parts(tmp_path):
    folder = tmp_path / "RAIR"
    for name in ("hard", "visual"):
        (folder / name).mkdir(parents=True)
        write_rair(folder / name / "a.parquet", [{**row, "subset": ""} for row in rair_rows()])
    (folder / "README.md").write_text(HUB_CARD)
    pairs, _, _ = load("rair", f"hub:{folder}", tmp_path, options={"config": "Hard_Subset,Visual_Subset"})
    assert [p.slices for p in pairs] == [["Hard_Subset"], ["Hard_Subset"], ["Visual_Subset"], ["Visual_Subset"]]
    assert pairs[0].image["bytes"] and SECRET not in str(pairs)
    with pytest.raises(LoreError, match="no config 'Easy'"):
        load("rair", f"hub:{folder}", tmp_path, options={"config": "Easy"})
    with pytest.raises(LoreError, match="could not be read from the hub"):
        load("rair", f"hub:{folder}", tmp_path)
    with pytest.raises(LoreError, match="only source rair reads from the hub"):
        open_source("wands", "hub:chenJi/RAIR")
