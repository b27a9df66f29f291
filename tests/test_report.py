"""The report is one file that loads nothing, runs nothing, shows what strangers wrote as text, and stays small."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from lore.eval.measures.metrics import NO_VERDICT, metric_names
from lore.eval.page.plots import reliability_svg
from lore.eval.page.report import MAX_SLICES, choose_mistakes, thumbnail, write_report
from lore.eval.predictions import Verdict
from lore.eval.scorecard import Answers, score
from lore.eval.sections import MetricsSection, ReportSection
from lore.eval.table import print_slices, print_table
from lore.eval.testset import EvalData, load_split
from lore.pairs import Pair, PairWriter
from lore.rubric import load_rubric

RUBRIC = load_rubric("rair")
TIERS = RUBRIC.tier_ids
PLANTED = '<script>alert(1)</script><img src="https://example.com/x.png" onerror="alert(2)"> </article> {{ 7*7 }} & "q"'


def photo(size: int = 900) -> dict:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> EvalData:
    path = tmp_path_factory.mktemp("report") / "pairs.parquet"
    rng = np.random.default_rng(0)
    picture = photo()
    with PairWriter(path) as writer:
        for index in range(240):
            broken = {"bytes": b"no image", "path": None}
            writer.write(
                Pair(
                    pair_id=f"{PLANTED}{index}" if index == 3 else f"p{index}",
                    query=f"{PLANTED} 红色 {index // 4}",
                    title=PLANTED + "x" * 5000,
                    label=TIERS[int(rng.integers(0, 4))],
                    split="test",
                    slices=["general", f"slice {index % 40} {PLANTED}"],
                    image=broken if index % 7 == 0 else picture if index % 2 else None,
                    rationale=PLANTED,
                )
            )
    return EvalData(path, RUBRIC, load_split(path, "test", RUBRIC), None)


def judged(data: EvalData, failing: bool = True) -> dict[str, Verdict]:
    rng = np.random.default_rng(1)
    verdicts = {}
    for index, pair_id in enumerate(data.test.pair_ids):
        probabilities = rng.dirichlet(np.ones(4)).tolist()
        verdicts[pair_id] = Verdict(pair_id, TIERS[int(np.argmax(probabilities))], probabilities, PLANTED * 50, PLANTED, [PLANTED])
        if failing and index % 10 == 0:
            verdicts[pair_id] = Verdict(pair_id, None, failure=PLANTED, text=PLANTED * 100, photo="failed")
    return verdicts


def cards_of(data, verdicts, **options):
    slices = list(data.test.slice_sizes())
    settings = MetricsSection(bootstrap_samples=30, **options)
    return [
        score(name, "model", "how it was asked", rows, data=data, options=settings, slices=slices, seed=0)
        for name, rows in verdicts.items()
    ]


@pytest.fixture(scope="module")
def html(data, tmp_path_factory) -> str:
    verdicts = {"judge": judged(data), "no photo": judged(data, failing=False)}
    path = tmp_path_factory.mktemp("out") / "report.html"
    prior = dict(zip(TIERS, (6, 7, 27, 60), strict=True))
    write_report(
        path,
        title=f"run {PLANTED}",
        cards=cards_of(data, verdicts, prior=prior),
        verdicts=verdicts,
        data=data,
        options=ReportSection(),
        facts={"data": PLANTED},
    )
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element with its attributes, in order; and whether they close as they open."""

    VOID = {"meta", "img", "br", "path", "use", "rect"}

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_what_strangers_wrote_is_text_and_nothing_runs_or_loads(html):
    elements = Elements(html)
    assert not elements.open
    for tag, attributes in elements.found:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:image/jpeg;base64,", "#"))
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    assert html.count("<script") == 0 and "&lt;script&gt;" in html
    assert "{{ 7*7 }}" in html and "@import" not in html
    assert "default-src 'none'" in html


def test_the_report_says_what_it_should(html):
    for part in ("Summary", "Under the given prior", "Acc@2", "Acc@4", "Macro-F1", "QWK", "AUC", "ECE", "no verdict"):
        assert part in html
    assert re.search(r"\[0\.\d\d, 0\.\d\d\]", html)
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html
    assert html.count("<svg") == 2 and html.count('class="confusion"') == 2
    assert html.count('class="mistake"') == 8 * 3 + 8 * 2
    assert html.count("data:image/jpeg") > 0 and "photo unreadable, judged as text" in html
    assert html.count('class="slice"') == MAX_SLICES
    assert "红色" in html


def test_the_report_stays_small(html):
    assert len(html.encode()) < 1_500_000  # 900 px photos, 5,000-character titles and endless rationales went in


def test_mistakes_are_the_farthest_and_the_surest_and_never_twice(data):
    gold = data.test.gold
    predicted = np.where(np.arange(len(gold)) % 2, gold, 3 - gold)
    predicted[5] = NO_VERDICT
    sure = np.linspace(0.3, 0.99, len(gold))
    probabilities = np.tile(((1 - sure) / 3)[:, None], (1, 4))
    np.put_along_axis(probabilities, np.maximum(predicted, 0)[:, None], sure[:, None], axis=1)
    mistakes = choose_mistakes(Answers(predicted, probabilities), data.test, TIERS, 6)
    assert [m.why for m in mistakes] == ["3 tiers off"] * 6 + ["sure and wrong"] * 6 + ["no verdict"]
    ids = [m.pair_id for m in mistakes]
    assert len(set(ids)) == len(ids)
    confidence = [m.confidence for m in mistakes]
    assert confidence[:6] == sorted(confidence[:6], reverse=True)
    assert confidence[6:12] == sorted(confidence[6:12], reverse=True)
    for mistake in mistakes[:12]:
        assert predicted[data.test.position[mistake.pair_id]] != gold[data.test.position[mistake.pair_id]]
    assert choose_mistakes(Answers(gold, None), data.test, TIERS, 6) == []


def test_a_thumbnail_is_small_and_a_broken_photo_is_none():
    uri = thumbnail(Pair(pair_id="a", query="q", title="t", image=photo()), 160)
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 40_000
    assert thumbnail(Pair(pair_id="a", query="q", title="t", image={"bytes": b"x", "path": None}), 160) is None


def test_a_diagram_takes_its_colours_from_the_page():
    rows = [
        {"low": i / 15, "high": (i + 1) / 15, "weight": 1.0, "confidence": (i + 0.5) / 15, "accuracy": i / 15} for i in range(15)
    ]
    svg = reliability_svg(rows, None, 'of "<judge>" $x_1$')
    assert "currentColor" in svg and "var(--accent)" in svg and "#0" not in svg
    assert "http" not in svg and "<style" not in svg and 'aria-label="of &quot;&lt;judge>&quot; $x_1$"' in svg
    assert svg == reliability_svg(rows, None, 'of "<judge>" $x_1$')


def test_the_table_fits_narrow_terminals_and_is_never_cut_in_a_pipe(data):
    cards = cards_of(data, {"a judge [bold]with[/] a long name": judged(data), "no photo": judged(data, failing=False)})
    for width in (80, 120, 240):
        out = io.StringIO()
        screen = Console(file=out, width=width, force_terminal=True, color_system=None)
        print_table(cards, TIERS, "t", console=screen, shown=metric_names(TIERS))
        print_slices(cards, TIERS, console=Console(file=out, width=width, force_terminal=True, color_system=None))
        text = out.getvalue()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text and "QWK" in text and "F1 L4" in text and text.count("\n0.") == 0
        shown = [str(value) for card in cards for value in card.whole.metrics.values() if str(value) != "–"]
        flat = " ".join(text.split())
        assert all(part in flat for value in shown for part in value.split(" ", 1))
    piped = io.StringIO()
    print_table(cards, TIERS, "t", console=Console(file=piped, width=40))
    row = next(line for line in piped.getvalue().splitlines() if "no photo" in line)
    assert row.count("[") >= 8 and "a judge [bold]with[/] a" in piped.getvalue()
