"""The report page: complete, escaped, and in need of nothing from anywhere."""

import re
from html.parser import HTMLParser

from fusion_model.metrics import METRIC_NAMES, FusionMetrics
from fusion_model.report import ReportPicture, build_report, format_estimate
from fusion_model.statistics import Estimate, PairScores, summarise_scores


class Outline(HTMLParser):
    """Tags that are open, and every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def build(patients: int = 12) -> str:
    scores = [
        PairScores(
            f"pair{patient}",
            patient,
            {
                "model": FusionMetrics(*[0.5 + patient / 100] * 10),
                "maximum": FusionMetrics(*[0.25 + patient / 100] * 10),
                "average": FusionMetrics(*[0.1] * 10),
            },
        )
        for patient in range(patients)
    ]
    facts = [("task", "ab" * 32), ("model", "<script>alert(1)</script>")]
    return build_report(
        "Q & A", facts, summarise_scores(scores), [ReportPicture('a "pair"', b"PNG")], ["x.png: <bad>"]
    )


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    page = build()
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.sources == ["data:image/png;base64,UE5H"]
    assert "url(" not in page
    assert "@import" not in page


def test_text_is_escaped() -> None:
    page = build()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<title>Q &amp; A</title>" in page
    assert "x.png: &lt;bad&gt;" in page
    assert 'alt="a &quot;pair&quot;"' in page


def test_means_differences_and_their_colours_are_there() -> None:
    page = build()
    for name in METRIC_NAMES:
        assert page.count(f"<td>{name}</td>") == 3, name
    assert "Means over 12 pairs of 12 patients" in page
    assert page.count('<td class="above">+0.250') == 10
    assert page.count('<td class="below">-0.205') == 10
    assert page.count('<td class="best">0.555') == 10
    assert "too narrow" not in page


def test_few_patients_are_named() -> None:
    assert "tend to be too narrow" in build(3)
    single = build(1)
    assert "no interval can be given" in single
    assert re.search(r"\+0\.250<br><small></small>", single)


def test_an_estimate_has_a_sign_only_as_a_difference() -> None:
    assert format_estimate(Estimate(0.5, -0.1, 1.0)) == ("0.500", "-0.100 to 1.000")
    assert format_estimate(Estimate(0.5, -0.1, 1.0), signed=True) == ("+0.500", "-0.100 to +1.000")
    assert format_estimate(Estimate(0.5, None, None)) == ("0.500", "")


def test_wide_tables_scroll_by_themselves() -> None:
    page = build()
    assert page.count("<table><thead>") == page.count('<div class="wide"><table><thead>') == 2
