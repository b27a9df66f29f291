"""The report page of a label folder."""

import re
from html.parser import HTMLParser

from label_folders import TIERS, label_row, write_labels
from test_label_summary import RAIR, some_rows

from lore.label.report import costs, duration, headline, write_report
from lore.label.summary import RunTotals, summarize

ATTACK = '<script>alert(1)</script>\u202e"onload=x'


class Page(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)


def page_of(folder, summary) -> tuple[str, Page]:
    write_report(folder, summary, RAIR, f"runs/grpo {ATTACK}")
    html = (folder / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_every_text_is_escaped_and_nothing_is_loaded(tmp_path):
    rows = some_rows(40)
    attacked = {"query": ATTACK, "item_id": ATTACK, "rationale": ATTACK, "mismatch": ATTACK, "rules": [ATTACK], "photo": ATTACK}
    rows = [row | attacked | {"slices": [ATTACK], "source": ATTACK, "judge_id": ATTACK} for row in rows]
    write_labels(tmp_path, rows)
    write_labels(tmp_path, [label_row(ATTACK, ATTACK, None, failure=ATTACK, detail=ATTACK)], kind="failures")
    html, page = page_of(tmp_path, summarize(tmp_path, RAIR))
    assert "script" not in page.tags and "\u202e" not in html
    assert not any(name.startswith("on") or name in ("src", "srcset") for name, _ in page.attributes)
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert "default-src 'none'" in html and "http://" not in html and "https://" not in html
    assert sum("<script>alert(1)</script>" in text for text in page.texts) >= 9


def test_what_the_page_says(tmp_path):
    old = write_labels(tmp_path / "old", some_rows())
    new = write_labels(tmp_path / "labels", some_rows(seed=5, shares=(0.7, 0.1, 0.1, 0.1)))
    totals = RunTotals(pairs=400, seconds=20.0, prompt_tokens=40_000, cached_tokens=30_000, usd=1.0)
    summary = summarize(new, RAIR, compare=old, totals=totals)
    html, page = page_of(new, summary)
    assert "Drift against the last run: all (large drift)" in headline(summary, RAIR)[-1]
    widths = re.findall(r'aria-label="all: [^"]*">((?:<i .*?</i>)+)', html)[0]
    shares = [float(width) for width in re.findall(r"width: ([\d.]+)%", widths)]
    tiers = summary.bands["all"].tiers
    assert shares == [round(100 * tiers[tier] / 400, 3) for tier in TIERS] and abs(sum(shares) - 100) < 0.01
    text = " ".join(" ".join(page.texts).split())
    for said in ("75.0 % of the prompt tokens", "20.0 pairs/s, 13.9 hours per million pairs", "20 labelled pairs, chosen"):
        assert said in text
    assert f"{summary.drift.changed.changed} of the 400 pairs in both runs have another tier now" in text


def test_an_empty_folder_has_a_page(tmp_path):
    _, page = page_of(tmp_path, summarize(tmp_path, RAIR))
    text = " ".join(page.texts)
    assert "No pair is labelled yet." in text and "Not measured: there is no earlier run." in text


def test_costs_and_durations():
    assert costs(RunTotals(pairs=10, seconds=0.0)) == {"labelled in this start": "10 pairs in 0.0 s"}
    assert costs(RunTotals(pairs=2000, seconds=10.0, usd=3.0))["cost"] == "3.00 USD, 1.5000 USD per 1,000 pairs"
    assert [duration(seconds) for seconds in (9.96, 245, 11_220)] == ["10.0 s", "4 min 05 s", "3 h 07 min"]
