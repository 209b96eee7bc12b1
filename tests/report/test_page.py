"""The report's page: self-contained, inert whatever names hold, whole or partial, its numbers beside it."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser

import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.report.html import Column, number, table
from mnmt_scale.report.page import write_report
from tests.support.fake_run import fake_run

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Elements and text of a page; asserts that tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def report(paths, out) -> Page:
    return Page(write_report(paths, out).read_text(encoding="utf-8"))


def check_self_contained(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "link", "img", "foreignObject")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                inside = "data:image/png;base64," if tag == "image" else "data:text/csv;"
                assert value.startswith(("#", inside)), (tag, value)
            assert "url(http" not in (value or "")
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    for _, attributes in page.elements:
        for value in attributes.values():
            for name in re.findall(r"url\(#([^)]+)\)", value or ""):
                assert name in identities
        target = attributes.get("href") or ""
        assert not target.startswith("#") or target[1:] in identities


def test_a_whole_run(tmp_path):
    page = report([fake_run(tmp_path / "run", 8)], tmp_path / "r.html")
    check_self_contained(page)
    # loss, classes, against tokens, cells, size and BLEU, sampling, speed, learning rate, gradient norm
    assert page.count("svg") == 9
    text = " ".join(page.text)
    for phrase in (
        "Translation quality",
        "no test text",
        "1,584,893",
        "tok:13a",
        "packages.torch",
        "update skipped",
        "left out: 56",
    ):
        assert phrase in text
    assert text.count("al-en") >= 3


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x_{$ \\frac", "]]>&amp;", "a\x07b"]
)
def test_names_are_inert(tmp_path, name):
    evil = fake_run(tmp_path / "evil", 3, name=name)
    metrics = evil / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("al-en", json.dumps(name)[1:-1]))
    environment = json.loads((evil / "environment.json").read_text())
    (evil / "environment.json").write_text(json.dumps(environment | {"host": name, name: name}))
    evaluation = json.loads((evil / "eval" / "test.json").read_text())
    evaluation["directions"][name] = evaluation["directions"].pop("al-en") | {"warning": name, "bleu_signature": name}
    evaluation["missing"] = [name + "!"]
    (evil / "eval" / "test.json").write_text(json.dumps(evaluation))
    page = report([evil, fake_run(tmp_path / "other", 3)], tmp_path / "r.html")
    check_self_contained(page)
    assert page.count("svg") == 10
    if name.isprintable():
        assert name in "".join(page.text)


def test_several_runs_side_by_side(tmp_path):
    first = fake_run(tmp_path / "a", 5, name="first")
    second = fake_run(tmp_path / "b", 5, name="second", gain=1.5, against=first, settings={"sampling": {"temperature": 1.0}})
    text = write_report([first, second], tmp_path / "r.html").read_text()
    page = Page(text)
    check_self_contained(page)
    assert "+1.5" in page.text
    assert "sampling.temperature" in page.text
    assert '<td class="best">41.50</td>' in text
    assert "0.0130" in page.text  # p of the paired bootstrap
    assert "second: dev" in page.text


def test_runs_with_other_directions_are_marked(tmp_path):
    runs = [fake_run(tmp_path / "a", 4, name="a"), fake_run(tmp_path / "b", 6, name="b")]
    assert "evaluated on different directions" in " ".join(report(runs, tmp_path / "r.html").text)


@pytest.mark.parametrize(
    ("without", "figures"),
    [(("eval",), 8), (("valid",), 8), (("plan",), 6), (("train",), 5), (("eval", "train", "valid", "plan", "environment"), 0)],
)
def test_partial_runs(tmp_path, without, figures):
    page = report([fake_run(tmp_path / "run", 4, without=without)], tmp_path / "r.html")
    check_self_contained(page)
    assert page.count("svg") == figures
    assert any("No " in line for line in page.text)
    assert "not measured" in " ".join(page.text).lower()


def test_a_run_that_has_only_begun(tmp_path):
    run = fake_run(tmp_path / "run", 4, without=("eval",))
    (run / "metrics.jsonl").write_text("")
    assert report([run], tmp_path / "r.html").count("svg") == 0
    (run / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1, "loss": 3.0, "tasks": {"al-en": {"nll": 3.0, "tokens": 5}}}\n'
    )
    assert report([run], tmp_path / "r.html").count("svg") == 2


def test_a_hundred_directions_stay_legible_and_small(tmp_path):
    out = tmp_path / "r.html"
    page = report([fake_run(tmp_path / "run", 100, steps=3000)], out)
    assert out.stat().st_size < 3_000_000
    cells = [text for text in page.text if text == "al-en"]
    assert len(cells) >= 3
    assert page.count("tr") > 100


def test_the_numbers_beside_the_page(tmp_path):
    first, second = fake_run(tmp_path / "a", 3, name="a"), fake_run(tmp_path / "b", 3, name="b", gain=2.0)
    write_report([first, second], tmp_path / "deep" / "r.html")
    rows = list(csv.DictReader((tmp_path / "deep" / "r.csv").open()))
    assert [(row["run"], row["direction"]) for row in rows[:2]] == [("a", "al-en"), ("b", "al-en")]
    assert float(rows[1]["bleu"]) == pytest.approx(float(rows[0]["bleu"]) + 2.0)
    assert rows[-1]["missing"] == "no test text"
    assert rows[-1]["bleu"] == ""
    whole = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert len(whole["runs"][0]["train"]) == 20
    assert [(row["run"], row["class"], row["directions"]) for row in whole["averages"]][:2] == [
        ("a", "all", 2),
        ("b", "all", 2),
    ]


def test_csv_text_is_no_formula(tmp_path):
    write_report([fake_run(tmp_path / "a", 2, name="=1+2")], tmp_path / "r.html")
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert rows[0]["run"] == "'=1+2"


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MnmtError) as caught:
        write_report([fake_run(tmp_path / "run", 2)], tmp_path / "file" / "r.html")
    assert caught.value.code == "E401"


def test_bold_marks_the_best_of_a_row_only():
    columns = [Column("", text=True), Column("BLEU", 1, best="max"), Column("nll", 1, best="min")] * 2
    markup = table(columns, [["x", 3.0, 1.0, "y", 4.0, 1.0]])
    assert re.findall(r'<td class="best">([^<]*)</td>', markup) == ["4.0"]


@pytest.mark.parametrize(
    ("value", "digits", "signed", "text"),
    [(1234567, 0, False, "1,234,567"), (0.04, 1, False, "0.04"), (1.25, 1, True, "+1.2"), (-0.01, 1, True, "-0.01"),
     (3e-7, 2, False, "3.00e-07"), (0.0, 2, False, "0.00")],
)  # fmt: skip
def test_numbers(value, digits, signed, text):
    assert number(value, digits, signed) == text
