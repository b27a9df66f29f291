"""The report is one file that loads nothing, runs its own script alone, shows what strangers wrote as text, says what was
found out, and stays small."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_for_tests import KNOWN_RULE, PLANTED, PRIOR, RUBRIC, TIERS, cards_of, judged, make_data, make_report, photo
from rich.console import Console

from lore.data.pair import Pair
from lore.eval.measures.bootstrap import Estimate, mean_estimate
from lore.eval.measures.metrics import NO_VERDICT, metric_names
from lore.eval.measures.results import Flip, RiskCurve, SampleCurves
from lore.eval.report.console import print_slices, print_table
from lore.eval.report.headline import headline
from lore.eval.report.mistakes import choose_mistakes, thumbnail
from lore.eval.report.report import write_report
from lore.eval.report.tables import MAX_SLICES, bar, flip_groups, slice_views
from lore.eval.scorecard import Answers
from lore.eval.sections import MetricsSection, ReportSection
from lore.eval.testset import EvalData
from lore.judge.verdict import Verdict
from lore.support.html import page_style
from lore.support.svg_plots import reliability_svg


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> EvalData:
    return make_data(tmp_path_factory.mktemp("report") / "pairs.parquet")


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "report.html"
    cards, verdicts = make_report(path, data)
    return path.read_text(encoding="utf-8"), cards, verdicts


@pytest.fixture(scope="module")
def html(made) -> str:
    return made[0]


class Elements(HTMLParser):
    """Every element with its attributes, in order; and whether they close as they open."""

    VOID = {"meta", "img", "br", "path", "use", "rect", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
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

    def handle_data(self, data):
        self.texts.append(data)

    def with_class(self, name: str) -> list[dict]:
        return [attributes for _, attributes in self.found if name in (attributes.get("class") or "").split()]


def test_what_strangers_wrote_is_text_and_nothing_else_runs_or_loads(html):
    elements = Elements(html)
    assert not elements.open
    for tag, attributes in elements.found:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:image/jpeg;base64,", "#"))
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    assert [attributes for tag, attributes in elements.found if tag == "script"] == [{}]
    assert "&lt;script&gt;" in html and "{{ 7*7 }}" in html and "@import" not in html
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    assert PLANTED[:8] not in script and "innerHTML" not in script and "eval(" not in script


def test_the_policy_names_exactly_the_script_of_the_page(html):
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for t, a in Elements(html).found if t == "meta" and "http-equiv" in a)
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["script-src"] == f"'sha256-{digest}'" and rules["img-src"] == "data:"
    assert "unsafe" not in rules["script-src"] and "connect-src" not in rules


def test_hostile_text_stands_in_every_section_that_shows_texts(html):
    for start, end in (
        ("<h1>", 'class="headline"'),
        ("What was tested", 'id="slices"'),
        ('id="slices"', 'id="confusion"'),
        ('id="capabilities"', 'id="robustness"'),
        ('id="robustness"', 'id="mistakes"'),
        ('id="mistakes"', "</main>"),
    ):
        part = html[html.index(start) : html.index(end, html.index(start))]
        assert "&lt;script&gt;" in part and "<script>window" not in part


def test_the_report_says_what_it_should(html):
    for part in ("Summary", "Under the given prior", "Acc@2", "Acc@4", "Macro-F1", "QWK", "AUC", "ECE", "no verdict"):
        assert part in html
    assert re.search(r"\[0\.\d\d, 0\.\d\d\]", html)
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html and "@media print" in html
    elements = Elements(html)
    assert len(elements.with_class("confusion")) == 3
    assert len([tag for tag, attributes in elements.found if tag == "svg"]) == 3 + 1 + 2  # reliability, risk, samples
    assert all(attributes["aria-label"] for tag, attributes in elements.found if tag == "svg")
    assert "data:image/jpeg" in html and "photo unreadable, judged as text" in html
    assert "红色" in html and KNOWN_RULE.principle in "".join(elements.texts)


def test_every_slice_has_a_bar_of_every_judge_under_both_priors(html):
    elements = Elements(html)
    views = [view["data-view"] for view in elements.with_class("view")]
    assert views[:2] == ["acc_k-own", "acc_2-own"] and "acc_k-prior" in views
    assert len(elements.with_class("slice")) == MAX_SLICES * len(views) + 3  # and one block for each perturbation
    assert html.count("Only the largest slices; metrics.json has 19 more.") == len(views)
    assert html.count('<div class="bar s') == 3 * MAX_SLICES * len(views)


def test_the_ceiling_is_a_line_where_it_means_something(html, data, made):
    assert html.count("agreement among raters: 0.86") == 2 and html.count("agreement among raters: 0.93") == 2
    for view in slice_views(made[1], TIERS, data.ceiling):
        assert (view["ceiling"] is not None) == (view["id"].split("-")[0] in ("acc_k", "acc_2"))
    for svg, said in zip(re.findall(r"<svg.*?</svg>", html, re.DOTALL), ("0.86",) * 3 + ("0.14",) + ("0.86",) * 2, strict=True):
        assert ">rater<" in svg and f">{said}<" in svg


def test_flips_share_one_scale_and_stay_inside_their_tracks():
    flips = [Flip(name, "injection", 9, 3, Estimate(up, up, high), Estimate(0.0), Estimate(0.5), Estimate(0.6), 0)
             for name, up, high in (("a", 0.1, 0.25), ("b", 0.05, 0.06))]  # fmt: skip
    card = type("Card", (), {"name": "j", "flips": flips})
    found = flip_groups([card])
    assert found["scale"] == "30 %"
    first, second = (block["rows"][0]["up"] for block in found["groups"][0]["blocks"])
    assert first["width"] == pytest.approx(33.33) and second["width"] == pytest.approx(16.67)
    assert bar(Estimate(-0.4, -0.6, 1.3)) == {"width": 0.0, "low": 0.0, "span": 100.0}


def test_sections_that_nothing_was_measured_for_leave_no_trace(data, tmp_path):
    verdicts = {"judge": {pair_id: Verdict(pair_id, TIERS[0]) for pair_id in data.test.pair_ids}}
    bare = EvalData(data.path, data.rubric, data.test, None)
    path = tmp_path / "report.html"
    cards = cards_of(bare, verdicts)
    for card in cards:
        card.agreement, card.risk, card.slices_natural = None, None, {}
    options = ReportSection(mistakes=0)
    write_report(path, title="t", cards=cards, verdicts=verdicts, data=bare, options=options, details={})
    html = path.read_text()
    for part in ("calibration", "risk", "samples", "raters", "capabilities", "robustness", "mistakes"):
        assert f'id="{part}"' not in html and f'href="#{part}"' not in html
    assert "<svg" not in html and "given prior" not in html


def test_values_that_are_not_defined_are_dashes_and_without_intervals_none_is_claimed(data, tmp_path):
    verdicts = {"judge": judged(data, 0.6), "lexical": judged(data, 0.4, seed=2)}
    cards = cards_of(data, verdicts)
    nothing = Estimate(float("nan"))
    for card in cards:
        card.risk = RiskCurve([0.5, 1.0], [nothing, nothing], nothing)
        card.samples = SampleCurves(2, 1.0, 9, {1: nothing, 2: nothing}, {})
        card.flips = [Flip("a", "of a new kind", 0, 0, nothing, nothing, nothing, nothing, 0)]
    path = tmp_path / "report.html"
    settings, options = MetricsSection(bootstrap_samples=0), ReportSection()
    write_report(path, title="t", cards=cards, verdicts=verdicts, data=data, options=options, details={}, metrics=settings)
    html = path.read_text()
    assert "nan" not in re.sub(r'src="[^"]*"', "", html) and "of a new kind" in html and "majority@k" in html
    assert "There is no interval" in html and "↑ –" in html and "– ↓" in html


def test_the_headline_claims_a_difference_only_where_it_is_clear(data):
    def said(**skills: float) -> str:
        verdicts = {name: judged(data, skill, seed=number, failing=False) for number, (name, skill) in enumerate(skills.items())}
        return " ".join(headline(cards_of(data, verdicts), verdicts, data, samples=200))

    assert "more right tiers than the best baseline, lexical" in said(good=0.8, lexical=0.4)
    assert "fewer right tiers than the best baseline, lexical" in said(bad=0.2, lexical=0.6)
    text = said(even=0.5, lexical=0.5)
    assert "cannot be told apart from the best baseline, lexical" in text and "more right" not in text
    assert "ranks first of 2 judges" in said(good=0.9, bad=0.5) and "ahead of the next judge, bad" in said(bad=0.5, good=0.9)
    assert "No judge was tested" in said(lexical=0.5)


def test_the_headline_gives_the_paired_interval_over_queries(data):
    verdicts = {"good": judged(data, 0.8, failing=False), "lexical": judged(data, 0.4, seed=4, failing=False)}
    right = [Answers.of(rows, data.test, RUBRIC).predicted == data.test.gold for rows in verdicts.values()]
    gain = mean_estimate(right[0].astype(float) - right[1], data.test.groups, samples=200, seed=3)
    written = f"{100 * gain.value:.1f} points [{100 * gain.low:.1f}, {100 * gain.high:.1f}]"
    assert written in headline(cards_of(data, verdicts), verdicts, data, samples=200, seed=3)[1]
    without = headline(cards_of(data, verdicts), verdicts, data, samples=0)[1]
    assert without.startswith("There is no interval")


def test_cards_carry_what_the_filters_ask_for(html, data, made):
    _, _, verdicts = made
    elements = Elements(html)
    cards = elements.with_class("mistake")
    assert len(cards) == 8 * 3 + 8 * 2  # the baseline has none beside judges
    assert {card["data-judge"] for card in cards} == {"0", "1"}
    assert sum("none" in card["data-kinds"].split() for card in cards) == 8
    for card in cards:
        kinds = set(card["data-kinds"].split())
        label, verdict = int(card["data-label"]), int(card["data-verdict"])
        assert ("none" in kinds) == (verdict == NO_VERDICT) and verdict != label
        if verdict != NO_VERDICT:
            assert ("high" in kinds) == (verdict > label) and kinds & {"far", "sure"}
        assert len(card["data-slices"].split()) == 3 and card["data-photo"] in ("yes", "no")
    options = [attributes["value"] for tag, attributes in elements.found if tag == "option"]
    assert {number for card in cards for number in card["data-slices"].split()} <= set(options)


def test_the_report_stays_small(data, html, tmp_path):
    assert len(html.encode()) < 1_900_000  # 900 px photos, 5,000-character titles and endless rationales went in
    verdicts = {f"judge {number}": judged(data, 0.5, seed=number) for number in range(5)}
    path = tmp_path / "report.html"
    cards, options = cards_of(data, verdicts, prior=PRIOR), ReportSection(thumbnail_pixels=320)
    write_report(path, title="t", cards=cards, verdicts=verdicts, data=data, options=options, details={})
    assert path.stat().st_size < 4_000_000
    assert "photo left out to keep this file small" in path.read_text()


def test_mistakes_are_the_farthest_and_the_surest_and_never_twice(data):
    gold = data.test.gold
    predicted = np.where(np.arange(len(gold)) % 2, gold, 3 - gold)
    predicted[5] = NO_VERDICT
    sure = np.linspace(0.3, 0.99, len(gold))
    probabilities = np.tile(((1 - sure) / 3)[:, None], (1, 4))
    np.put_along_axis(probabilities, np.maximum(predicted, 0)[:, None], sure[:, None], axis=1)
    mistakes = choose_mistakes(Answers(predicted, probabilities), data.test, TIERS, 6)
    assert [m.why for m in mistakes] == ["3 tiers off"] * 6 + ["confident and wrong"] * 6 + ["no verdict"]
    ids = [m.pair_id for m in mistakes]
    assert len(set(ids)) == len(ids)
    confidence = [m.confidence for m in mistakes]
    assert confidence[:6] == sorted(confidence[:6], reverse=True)
    assert confidence[6:12] == sorted(confidence[6:12], reverse=True)
    for mistake in mistakes[:12]:
        assert predicted[data.test.position[mistake.pair_id]] != gold[data.test.position[mistake.pair_id]]
    assert all("far" in m.kinds for m in mistakes[:6]) and all("sure" in m.kinds for m in mistakes[6:12])
    surest = sorted((m for m in mistakes[:12]), key=lambda m: -m.confidence)[:6]
    assert all("sure" in m.kinds for m in surest)  # also where they are among the farthest
    assert choose_mistakes(Answers(gold, None), data.test, TIERS, 6) == []


def test_a_thumbnail_is_small_and_a_broken_photo_is_none():
    uri = thumbnail(Pair(pair_id="a", query="q", title="t", image=photo()), 160)
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 40_000
    assert thumbnail(Pair(pair_id="a", query="q", title="t", image={"bytes": b"x", "path": None}), 160) is None


def test_a_diagram_takes_its_colours_from_the_page():
    rows = [
        {"low": i / 15, "high": (i + 1) / 15, "weight": 1.0, "confidence": (i + 0.5) / 15, "accuracy": i / 15} for i in range(15)
    ]
    svg = reliability_svg(rows, None, 'of "<judge>" $x_1$', ceiling=0.8)
    assert "currentColor" in svg and "var(--accent)" in svg and "#0" not in svg
    assert "http" not in svg and "<style" not in svg and 'aria-label="of &quot;&lt;judge>&quot; $x_1$"' in svg
    assert svg == reliability_svg(rows, None, 'of "<judge>" $x_1$', ceiling=0.8)


def test_colours_have_contrast_in_both_schemes():
    blocks = re.findall(r":root \{(.*?)\}", page_style(), re.DOTALL)
    light, dark, printed = (dict(re.findall(r"--(\w+): (#\w+)", block)) for block in blocks)
    for colours in (light, light | dark, light | printed, dark | printed):
        for paper in ("paper", "panel"):
            for name in ("ink", "soft", "accent", "bad"):
                assert contrast(colours[name], colours[paper]) >= 4.5, (name, paper, colours[name])
            for number in range(6):
                assert contrast(colours[f"s{number}"], colours[paper]) >= 3.0


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two #rgb or #rrggbb colours."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_table_fits_narrow_terminals_and_is_never_cut_in_a_pipe(data):
    cards = cards_of(data, {"a judge [bold]with[/] a long name": judged(data, 0.4), "no photo": judged(data, 0.4, failing=False)})
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
