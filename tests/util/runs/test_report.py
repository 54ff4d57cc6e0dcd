from html.parser import HTMLParser
from urllib.parse import unquote

from util.runs.manifest import Record
from util.runs.report import report_page, summary_table


class Page(HTMLParser):
    """All tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def row(name, metrics, residual=None, expected=None):
    figures = {"metrics": metrics, "residual": residual, "expected_residual": expected}
    return Record(f"{name}.png", "", 0, 0.0, **figures)


NASTY = 'a/<b> "\u00e9#1 50%? @@cards@@'
LABELLED = [
    row(NASTY, {"psnr": 20.5, "ssim": 0.5}, 1.25, 3.0),
    row("b", {"psnr": float("inf"), "ssim": 1.0}, 0.0, 3.0),
]


def test_names_of_any_kind_are_shown_and_linked():
    page = Page(report_page("title & more", LABELLED, {"<x>": "bad & broken"}, "seed: '<0>'"))
    cards = page.attributes("article")
    assert [card["data-name"] for card in cards] == [NASTY, "b"]
    assert float(cards[0]["data-psnr"]) == 20.5
    links = [image["src"] for image in page.attributes("img") if "src" in image]
    kinds = ("input", "recon", "label")
    assert [unquote(link) for link in links[:3]] == [f"{kind}/{NASTY}.png" for kind in kinds]
    assert not any(c in link for link in links for c in '#?"<> ')
    assert "bad & broken" in page.text
    assert "seed: '<0>'" in page.text


def test_nothing_is_fetched_from_elsewhere():
    page = report_page("t", LABELLED, {}, "")
    assert "http" not in page
    assert "//" not in page.replace("</", "").replace("/>", "")


def test_without_labels_there_is_a_residual_only():
    page = Page(report_page("t", [row("a", {}, 1.25, 3.0)], {}, ""))
    assert [i["data-kind"] for i in page.attributes("img") if "data-kind" in i] == [
        "input",
        "recon",
    ]
    assert [o["value"] for o in page.attributes("option")] == [
        *("name", "residual", "expected_residual", "seconds")
    ]


def test_summary_table():
    rows = [row("a", {"psnr": 20.0, "ssim": 0.5}, 1.0), row("b", {"psnr": 22.0, "ssim": 0.7}, 3.0)]
    lines = summary_table(rows, 2, 61.0).splitlines()
    assert lines[0] == "2 finished, 2 failed, 61 s"
    assert lines[2].split() == ["PSNR", "21.000", "20.000", "22.000"]
    assert lines[4].split() == ["residual", "2.000", "1.000", "3.000"]
    single = summary_table(rows[:1], 0, 5.0).splitlines()
    assert [line.split() for line in single[1:3]] == [["PSNR", "20.000"], ["SSIM", "0.500"]]
    assert summary_table([], 1, 0.0).splitlines() == ["0 finished, 1 failed, 0 s"]


def test_an_image_that_does_not_fit_its_measurement_is_marked():
    rows = [row("good", {}, 1.0, 1.1), row("poor", {}, 3.0, 1.0), row("fitted", {}, 0.3, 1.0)]
    cards = report_page("t", rows, {}, "").split("<article")[1:]
    texts = {card.split('data-name="')[1].split('"')[0]: card for card in cards}
    assert 'class="misfit"' not in texts["good"]
    assert "does not explain the measurement" in texts["poor"]
    assert "explains part of the noise" in texts["fitted"]
