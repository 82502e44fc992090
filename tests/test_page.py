"""The page of a comparison and what lies beside it: every figure is the record's, whoever looks at it."""

from __future__ import annotations

import csv
import io
import itertools
import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from statistics import median

import numpy
import pytest
from browser import picture_boxes, views
from comparisons import RANKS, RATES, SIX, a_comparison, some_rates
from sklearn.metrics import confusion_matrix

from lora_from_scratch.methods import METHODS
from lora_from_scratch.report import compared, costs, page, palette, published, sweeps
from lora_from_scratch.report.drawing import Picture
from lora_from_scratch.report.exports import comparison_csv, comparison_markdown
from lora_from_scratch.report.rates_picture import draw, parabola, rates_picture

ROOT = Path(__file__).parents[1]
NASTY = {
    "full": SIX["full"],
    "lora, <b>&\"'|$x$ `": ("lora", {"rank": 4}, 16_896, 0.86),
    "lora, target modules attn.c_attn+attn.c_proj+mlp.c_fc+mlp.c_proj, alpha 32": (
        "lora",
        {"rank": 8},
        33_280,
        0.84,
    ),
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd": ("head", {}, 512, 0.8),
}
KINDS = {  # what `a_comparison` is asked
    "six": dict(margin=1.0, labels=[0, 1] * 436, failed={("prefix", 1): "the loss is nan at step 9"}),
    "one seed": dict(seeds=(7,), accounted=False),
    "five seeds, no texts": dict(seeds=range(5), texts=False),
    "ranks": dict(variants=RANKS),
    "rates": dict(variants=RATES),
    "three classes, two datasets, unfinished": dict(
        datasets=("a.csv", "<script>alert(1)</script>"),
        names=("angry", "calm", "glad & <b>"),
        planned=[("lora", 2), ("prefix", 0), ("prefix", 1), ("prefix", 2)],
        failed={("head", 0): "a <b>", ("head", 1): "a <b>", ("head", 2): "a <b>"},
    ),
    "many classes": dict(names=[f"class {i}" for i in range(12)], sentences=100),
    "nasty": dict(
        variants=NASTY,
        texts=['<script>alert("x")</script> & \u05e9\u05dc\u05d5\u05dd ' * 20] * 24,
        sentences=24,
    ),
    "nothing done": dict(variants={"lora": SIX["lora"]}, seeds=(0,), planned=[("lora", 0)]),
}
EACH = pytest.mark.parametrize("comparison", KINDS, indirect=True)
VOID = {"meta", "link", "br", "img", "path", "use", "rect"}


@cache
def made(kind: str) -> dict:
    """Once: made where the file is imported, every process that imports it would wait."""
    return a_comparison(**KINDS[kind])


@pytest.fixture
def comparison(request: pytest.FixtureRequest) -> dict:
    return made(request.param)


class Page(HTMLParser):
    """What a reader of the page finds: tables by id, headings, attributes; texts as they are shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.heads: dict[str, list[str]] = {}
        self.headings: list[tuple[int, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []  # of the page, outside of style and pictures
        self.letters: list[str] = []  # of pictures
        self._open: list[str] = []
        self._table, self._hidden = "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        held = dict(attributes)
        self.tags.append((tag, held))
        self._hidden = held.get("aria-hidden") == "true"
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._table = held.get("id") or f"matrix {len(self.tables)}"
            self.tables[self._table], self.heads[self._table] = [], []
        if tag == "tr" and "tbody" in self._open:
            self.tables[self._table].append([])
        if tag in ("td", "th") and "tbody" in self._open:
            self.tables[self._table][-1].append("")
        if tag == "th" and "thead" in self._open:
            self.heads[self._table].append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag in ("span", "small"):  # lines of a cell
            self.handle_data("\n")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._hidden and "svg" not in self._open:
            return
        if "svg" in self._open:
            self.letters += [data.strip()] if "text" in self._open else []
            return
        if "style" in self._open:
            return
        self.text.append(data)
        if "tbody" in self._open and ("td" in self._open or "th" in self._open):
            self.tables[self._table][-1][-1] += data
        elif "thead" in self._open and "th" in self._open:
            self.heads[self._table][-1] += data
        if any(re.fullmatch("h[1-6]", tag) for tag in self._open):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)


def lines(cell: str) -> list[str]:
    """The lines of a cell."""
    return [line.strip() for line in cell.splitlines() if line.strip()]


def done(variant: dict) -> list[dict]:
    return [run for run in variant["runs"] if run["status"] == "done"]


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def interval(pair: list[float], digits: int = 1) -> str:
    return " to ".join(f"{value:.{digits}f}" for value in pair).replace("-", "\u2212")


@cache
def pictures_of(kind: str) -> dict[str, Picture]:
    return page.comparison_pictures(made(kind))


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    drawn = {kind: pictures_of(kind) for kind in ("six", "nasty")}
    return {kind: Page(page.comparison_page(made(kind), drawn.get(kind, {}))) for kind in KINDS}


@pytest.fixture
def shown(request, pages) -> Page:
    return pages[request.node.callspec.id]


@EACH
def test_every_row_of_the_table_is_a_variant_with_its_figures(comparison, shown):
    for number, dataset in enumerate(comparison["datasets"], 1):
        rows = shown.tables[f"data{number}-variants"]
        assert len(rows) == len(dataset["variants"])
        means = [v["accuracy"]["mean"] for v in dataset["variants"] if v["accuracy"]]
        quickest = min((v["seconds"]["median"] for v in dataset["variants"] if v["seconds"]), default=None)
        for row, v in zip(rows, dataset["variants"], strict=True):
            name, accuracy, best, f1, trainable, time, memory = map(lines, row)
            assert name[0] == v["label"] and name[1].startswith(f"{v['done']} of {v['planned']} runs")
            assert ("failed" in name[1]) == bool(v["failed"])
            if not done(v):
                assert [accuracy, best, f1, trainable, time, memory] == [["\u2013"]] * 6 or len(name) > 2
                continue
            held = v["accuracy"]
            assert accuracy[0] == f"{held['mean']:.2f}"
            assert (f"SD {held['sd']:.2f}" in accuracy) if held["sd"] is not None else ("SD" not in row[1])
            kind = {"wilson": "Wilson", "crossed": "95 %"}[held["kind"]]
            assert f"{kind}: {interval(held['interval'])}" in accuracy
            assert ("this checkpoint only" in accuracy) == (len(done(v)) == 1)
            assert best == ["best" if held["mean"] == max(means) else signed(held["mean"] - max(means))]
            assert f1[0] == f"{v['f1']['mean']:.2f}"
            assert trainable[0] == f"{v['trainable_parameters']:,}" or not v["trainable_parameters"]
            assert memory[:2] == [f"{v['peak_bytes'] / 1e9:.2f} GB", "resident peak"]
            if v["seconds"]:
                times = [run["train_seconds"] for run in done(v)]
                loads = [load for run in done(v) for load in run["load_average"]]
                assert time[0] == f"{median(times):,.1f} s"
                assert f"{median(times) / quickest:.2f} times the quickest" in time
                ends = dict.fromkeys(f"{end(loads):.1f}" for end in (min, max))
                assert f"load average {' to '.join(ends)}" in time
                assert (f"{min(times):,.1f} to {max(times):,.1f} s" in time) == (len(times) > 1)
            else:
                assert time[0] == "\u2013"


@EACH
def test_every_run_has_its_row(comparison, shown):
    for number, dataset in enumerate(comparison["datasets"], 1):
        rows = iter(shown.tables[f"data{number}-every-run"])
        for variant, run in ((v, run) for v in dataset["variants"] for run in v["runs"]):
            label, seed, state, *rest = next(rows)
            assert label.split("\n")[-1].endswith(variant["label"]) and seed == str(run["seed"])
            assert state == (f"{run['status']}: {run['error']}" if run["error"] else run["status"])
            if run["status"] != "done":
                assert rest == []
                continue
            assert rest[:3] == [f"{run['accuracy']:.2f}", interval(run["interval"]), f"{run['f1']:.2f}"]
            assert rest[3] == "\u2013" if run["lr"] is None else float(rest[3]) == pytest.approx(run["lr"])
            if run["train_seconds"]:
                expected = [f"{run['train_seconds']:,.1f} s", f"{run['sentences_per_second']:,.0f}"]
                assert rest[4:7] == [*expected, interval(run["load_average"], 2)]
            assert rest[7] == f"{run['peak_bytes'] / 1e9:.2f} GB"
        assert next(rows, None) is None


@EACH
def test_the_verdict_comes_first_and_every_comparison_has_its_sentence(comparison, shown):
    text = re.sub(r"\s+", " ", "".join(shown.text))
    first = text.index(" ".join(comparison["datasets"][0]["headline"].split()))
    assert first < text.index("runs") and first < 400
    at = text.index("Verdicts", text.index("What was run"))  # after the list of what is on the page
    for dataset in comparison["datasets"]:
        for one in dataset["comparisons"]:
            at = text.index(" ".join(one["sentence"].split()), at + 1)
            assert one["verdict"] in text[at - 30 : at]
            if one["difference"] is not None:
                told = text[at : at + 600]
                p = "< 0.001" if one["p_holm"] < 0.001 else f"{one['p_holm']:.3f}"
                assert f"difference, points{signed(one['difference'])}95 % interval" in told
                assert f"{interval(one['interval'], 2)}SE{one['standard_error']:.2f}p after Holm{p}" in told
                assert f"least visible, points{one['detectable']:.2f}" in told
                assert f"bootstrap{interval(one['bootstrap'], 2)}" in told
    counts = f"{comparison['done']} of {comparison['planned']} done, {comparison['failed']} failed"
    assert counts in text and comparison["command"] in text
    for value in comparison["environment"].values():
        assert str(value) in text
    for dataset in comparison["datasets"]:
        for error in {run["error"] for v in dataset["variants"] for run in v["runs"]} - {None}:
            assert text.index(error) < text.index("Verdicts", first)  # openly, not in the details alone


@EACH
def test_sentences_are_counted_as_a_plain_loop_counts_them(comparison, shown):
    for number, dataset in enumerate(comparison["datasets"], 1):
        ran = [v for v in dataset["variants"] if done(v)]
        trained = [v["label"] for v in ran if v["trainable_parameters"]]
        flips, missed, wrong = set(), set(), set()
        for i, truth in enumerate(dataset["labels"]):
            right = {v["label"]: [run["predictions"][i] == truth for run in done(v)] for v in ran}
            most = {label: 2 * sum(right[label]) - len(right[label]) for label in trained}
            if trained and min(most.values()) < 0 < max(most.values()):
                flips.add(i + 1)
            if trained and max(most.values()) < 0:
                missed.add(i + 1)
            if not all(all(right[label]) for label in trained):
                wrong.add(i + 1)
        for name, expected in (("flips", flips), ("missed", missed), ("wrong", wrong)):
            parts = (f"data{number}-{name}", f"data{number}-{name}-rest")
            rows = [row for part in parts for row in shown.tables.get(part, [])]
            numbers = [int(re.search(r"\d+", row[0])[0]) for row in rows]
            assert (set(numbers) == expected or len(rows) == 500) and len(set(numbers)) == len(rows)
            for row, index in zip(rows, numbers, strict=True):
                _, truth, *cells = row
                assert truth == dataset["label_names"][dataset["labels"][index - 1]]
                for cell, v in zip(cells, ran, strict=True):
                    said = [run["predictions"][index - 1] for run in done(v)]
                    right = said.count(dataset["labels"][index - 1])
                    assert cell.split("\n")[0] == f"{right}/{len(said)}"
                if dataset["texts"]:
                    assert dataset["texts"][index - 1][:200] in row[0]


def test_flips_between_two_are_counted_both_ways(pages):
    (dataset,) = made("six")["datasets"]
    variants = {v["label"]: v for v in dataset["variants"]}
    text = re.sub(r"\s+", " ", "".join(pages["six"].text))
    for one in dataset["comparisons"]:
        counts = [0, 0]
        for i, truth in enumerate(dataset["labels"]):
            right = [[r["predictions"][i] == truth for r in done(variants[one[side]])] for side in ("a", "b")]
            a, b = (2 * sum(each) - len(each) for each in right)
            counts[0] += a > 0 > b
            counts[1] += a < 0 < b
        told = text[text.rindex(one["sentence"]) :][:500]
        assert f"flips{counts[0]:,} to {counts[1]:,}" in told


@pytest.mark.parametrize("kind", ["six", "three classes, two datasets, unfinished"])
def test_confusion_matrices_are_those_of_scikit_learn(kind, pages):
    matrices = iter([rows for name, rows in pages[kind].tables.items() if name.startswith("matrix")])
    for dataset in made(kind)["datasets"]:
        for variant in filter(done, dataset["variants"]):
            said = [answer for run in done(variant) for answer in run["predictions"]]
            expected = confusion_matrix(dataset["labels"] * len(done(variant)), said)
            rows = next(matrices)
            assert [
                [int(cell.split("\n")[0].replace(",", "")) for cell in row[1:]] for row in rows
            ] == expected.tolist()
            shares = 100 * expected / expected.sum(axis=1, keepdims=True)
            assert [cell.split("\n")[1] for row in rows for cell in row[1:]] == [
                f"{share:.1f} %" for share in shares.ravel()
            ]
    assert next(matrices, None) is None


def test_of_many_classes_the_commonest_mistakes_are_listed(pages):
    dataset = made("many classes")["datasets"][0]
    rows = next(rows for name, rows in pages["many classes"].tables.items() if name.startswith("matrix"))
    said = [run["predictions"] for run in dataset["variants"][0]["runs"]]
    pairs = [
        (t, p) for predictions in said for t, p in zip(dataset["labels"], predictions, strict=True) if t != p
    ]
    counts = sorted((pairs.count(pair) for pair in set(pairs)), reverse=True)[:12]
    assert [int(row[2]) for row in rows] == counts
    name = dataset["label_names"].index
    assert all(pairs.count((name(row[0]), name(row[1]))) == int(row[2]) for row in rows)


def test_the_published_figures_stand_beside_the_methods_that_have_them(pages):
    """As docs/published-table.md has them, and beside SST-2's 872 sentences alone."""
    doc = (ROOT / "docs" / "published-table.md").read_text(encoding="utf-8")
    table = [
        [c.strip() for c in line.strip("| ").split("|")] for line in doc.splitlines() if line[:1] == "|"
    ][2:6]
    known = {row.name.split(",")[0]: row for row in published.ROWS}
    for name, accuracy, f1, trainable, seconds, allocated in table:
        row = known[name]
        assert (f"{row.accuracy:.2f}", f"{row.f1:.2f}") == (accuracy, f1)
        assert (row.trainable or "-", row.allocated or "-") == (trainable, allocated)
        assert (f"{row.seconds:.2f}" if row.seconds else "-") == seconds
    shown = {lines(row[0])[0]: row for row in pages["six"].tables["data1-variants"]}
    assert "published: LoRA" in shown["lora"][0] and "published 86.93" in shown["lora"][1]
    assert "published 87.42" in shown["lora"][3] and "published 148K" in shown["lora"][4]
    assert "published 2,464.95 s" in shown["lora"][5] and "published 0.49 GB allocated" in shown["lora"][6]
    assert [label for label, row in shown.items() if "published" in "".join(row)] == [
        n for n in SIX if n != "head"
    ]
    text = "".join(pages["six"].text)
    assert "those of GPT-2 small" in text and "mini-gpt2 (bundled). Nothing follows" in text
    assert not any("published" in "".join(p.text) for name, p in pages.items() if name != "six")


def test_of_several_variants_the_one_with_the_published_settings_has_the_published_row():
    comparison = a_comparison(RANKS, labels=[0, 1] * 436)
    rows = Page(page.comparison_page(comparison, {})).tables["data1-variants"]
    assert [lines(row[0])[0] for row in rows if "published" in row[0]] == ["lora, rank 4"]


@EACH
def test_the_page_is_whole_safe_and_readable_by_whoever(comparison, shown):
    tags = [tag for tag, _ in shown.tags]
    held = [attributes for _, attributes in shown.tags]
    assert {"script", "img", "link", "iframe", "b"}.isdisjoint(tags)
    assert not any(name.startswith("on") or name == "src" for attributes in held for name in attributes)
    assert {a["href"] for a in held if a.get("href", "#")[0] != "#"} <= {published.SOURCE}
    assert ("html", {"lang": "en"}) in shown.tags and {"header", "main", "footer", "nav"} <= set(tags)
    levels = [level for level, _ in shown.headings]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert tags.count("table") == tags.count("caption")
    assert all("scope" in attributes for tag, attributes in shown.tags if tag == "th")
    assert tags.count("svg") == sum(attributes.get("role") == "img" for attributes in held)
    assert all(re.search(r"\d", a["aria-label"]) for a in held if a.get("role") == "img")
    ids = [attributes["id"] for attributes in held if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = "".join(str(value) for attributes in held for value in attributes.values())
    assert set(re.findall(r"url\(#([^)]+)\)", named)) <= set(ids)
    assert {a["href"][1:] for a in held if a.get("href", "")[:1] == "#"} <= set(ids)
    assert "\u00b1" not in "".join(shown.text) + named + "".join(shown.letters)
    for label in (variant["label"] for dataset in comparison["datasets"] for variant in dataset["variants"]):
        assert label in "".join(shown.text)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("six", "differences accuracy parameters time memory loss validation"),
        ("one seed", "accuracy parameters time memory loss validation"),
        ("ranks", "differences accuracy parameters rank time memory loss validation"),
        ("rates", "differences accuracy parameters rate time memory loss validation"),
        ("nothing done", ""),
    ],
)
def test_each_picture_shows_what_the_record_holds(kind, expected):
    found = pictures_of(kind)
    assert list(found) == expected.split()
    assert all(picture.png.startswith(b"\x89PNG") for picture in found.values())
    (dataset,) = made(kind)["datasets"]
    for variant in filter(done, dataset["variants"]):
        mean = f"{variant['accuracy']['mean']:.2f}"
        assert mean in found["accuracy"].alt and f">{mean} (" in found["accuracy"].svg
        assert all(f"{run['accuracy']:.2f}" in found["accuracy"].alt for run in done(variant))
        for name in {"rank", "rate"} & found.keys():
            assert mean in found[name].alt
        if variant["trainable_parameters"]:
            assert f"{variant['trainable_parameters']:,} parameters, {mean}" in found["parameters"].alt
            assert f"{variant['seconds']['median']:,.1f} s, load" in found["time"].svg
            last = [run["losses"][-1] for run in done(variant)]
            mean = numpy.mean([loss for _, loss in last])
            assert f"to {mean:.2f} at step {last[0][0]:,}" in found["loss"].alt
        if variant["accounted"]:
            total = sum(variant["accounted"].values()) / 1e6
            assert f"> {total:,.1f}<" in found["memory"].svg or f">{total:,.1f}<" in found["memory"].svg
            for part, size in variant["accounted"].items():
                text = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
                assert f"{part} {text}" in found["memory"].alt
    if "memory" in found:
        accounted = any(variant["accounted"] for variant in dataset["variants"])
        assert ("by arithmetic" in found["memory"].caption + found["memory"].svg) == accounted
    for one in dataset["comparisons"] if "differences" in found else ():
        told = f"{signed(one['difference'])} ({interval(one['interval'])})"
        assert told in found["differences"].alt and told in found["differences"].svg


def test_memory_is_told_where_most_and_least_of_it_learns(pages):
    variants = [v for v in made("six")["datasets"][0]["variants"] if v["accounted"]]
    text = "".join(pages["six"].text)
    for method in ("full", "head"):
        (v,) = [v for v in variants if v["label"] == method]
        learning = v["accounted"]["gradients"] + v["accounted"]["moments"]
        told = f"{learning / 1e6:.1f} MB" if learning >= 1e6 else f"{learning / 1e3:.1f} kB"
        assert f"{told} for {method} ({100 * learning / v['peak_bytes']:.3g} % of its peak)" in text
    assert "Gradients and the optimizer" not in "".join(
        pages["one seed"].text
    )  # where nothing is accounted for


def test_only_settings_that_differ_are_tabled(pages):
    assert pages["ranks"].heads["data1-settings"] == ["variant", "rank"]
    assert [row[1] for row in pages["ranks"].tables["data1-settings"]] == ["1", "4", "16", "64"]
    assert pages["rates"].heads["data1-settings"] == ["variant", "learning rate"]
    assert [row[1] for row in pages["rates"].tables["data1-settings"]] == ["2e-4", "6e-4", "2e-3"] * 2
    rows = dict(pages["six"].tables["data1-settings"])
    assert rows["none"] == "\u2013" and rows["lora"] == "1e-3"
    assert "data1-settings" not in pages["nothing done"].tables


def test_means_over_survivors_say_so(pages):
    text = "".join(pages["six"].text)
    assert "Means over those runs that finished: prefix (2 of 3 runs)" in text
    found = pictures_of("six")
    assert all("prefix (2 of 3 runs)" in found[name].alt for name in ("accuracy", "time", "memory", "loss"))
    assert "prefix (2 of 3 runs)" in comparison_markdown(made("six"))


def test_a_line_over_ranks_is_named_as_in_the_verdicts():
    asked = {f"{rank} {place}": {"rank": rank, "target_modules": place} for rank in (1, 4) for place in "ab"}
    variants = {label: ("lora", differs, 512, 0.8) for label, differs in asked.items()}
    (dataset,) = compared.datasets(a_comparison(variants=variants, sentences=24))
    found = sweeps.lines(dataset, "rank", lambda variant: variant["config"]["rank"])
    assert list(found) == [("lora", "target modules a"), ("lora", "target modules b")]
    assert [[rank for rank, _ in points] for points in found.values()] == [[1, 4]] * 2


def test_equal_comparisons_give_equal_bytes(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setattr(page, "comparison_pictures", lambda comparison: pictures_of("ranks"))
    names = page.write_comparison(made("ranks"), tmp_path / "a")
    monkeypatch.undo()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert page.write_comparison(made("ranks"), tmp_path / "b") == names
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(names)
    assert {"report.html", "table.md", "runs.csv", "accuracy.png", "rank.png"} <= set(names)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_everything_is_written_or_nothing(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("an older one")
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.suffix == ".png":
            raise OSError("No space left on device")
        return write(path, data)

    monkeypatch.setattr(page, "comparison_pictures", lambda comparison: pictures_of("six"))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError):
        page.write_comparison(made("ranks"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "an older one"


def test_without_matplotlib_there_are_no_pictures_and_one_line_says_so(tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert page.write_comparison(made("six"), tmp_path) == ["report.html", "table.md", "runs.csv"]
    shown = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "svg" not in [tag for tag, _ in shown.tags]
    assert "".join(shown.text).count("There are no pictures: matplotlib is not installed.") == 1
    assert len(shown.tables["data1-variants"]) == 6
    assert draw(some_rates()) is None


@EACH
def test_the_csv_has_every_run_unrounded(comparison):
    rows = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    runs = [(d, v, r) for d in comparison["datasets"] for v in d["variants"] for r in v["runs"]]
    for row, (dataset, variant, run) in zip(rows, runs, strict=True):
        assert (row["dataset"], row["variant"], row["seed"]) == (
            dataset["name"],
            variant["label"],
            str(run["seed"]),
        )
        assert (row["status"], row["error"], row["method"]) == (
            run["status"],
            run["error"] or "",
            variant["method"],
        )
        for flag, value in variant["differs"].items():
            assert row[flag] == str(value) or flag == "lr"
        for name in ("accuracy", "f1", "lr", "train_seconds", "sentences_per_second", "peak_bytes"):
            value = run.get(name)
            assert row[name] == "" if value is None else float(row[name]) == value
        ends = [row["interval_low"], row["interval_high"], row["load_before"], row["load_after"]]
        expected = [*(run.get("interval") or ("", "")), *(run.get("load_average") or ("", ""))]
        assert ends == [str(end) for end in expected]


@EACH
def test_the_markdown_table_has_a_row_a_variant(comparison):
    text = comparison_markdown(comparison)
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in row] for row in rows]
    assert len({len(row) for row in rows}) == 1
    body = iter([row for row in rows if row[0] != "method" and set(row[0]) != {"-"}])
    for variant in (v for dataset in comparison["datasets"] for v in dataset["variants"]):
        label, runs, accuracy, between, f1, trainable, *_ = next(body)
        assert label.replace("\\|", "|").replace("&lt;", "<") == variant["label"]
        assert runs in (str(variant["done"]), f"{variant['done']} of {variant['planned']}")
        if held := variant["accuracy"]:
            sd = f" (SD {held['sd']:.2f})" if held["sd"] is not None else ""
            assert accuracy == f"{held['mean']:.2f}{sd}" and between.startswith(interval(held["interval"]))
            assert ("this checkpoint only" in between) == (held["kind"] == "wilson")
            assert f1.startswith(f"{variant['f1']['mean']:.2f}")
            assert trainable == f"{variant['trainable_parameters']:,}"
    assert next(body, None) is None
    for dataset in comparison["datasets"]:
        assert all(f"- {one['sentence']}".replace("<b>", "&lt;b>") in text for one in dataset["comparisons"])
    assert f"`{comparison['command']}`" in text and "\u00b1" not in text and "<script" not in text


def test_the_curve_of_a_tuning():
    rates = some_rates()
    found = rates_picture(rates)
    assert found.png == draw(rates) and found.svg.count("<g") > 20
    for variant in rates["variants"]:
        shape = variant["parabola"]
        along = parabola(variant)
        slope = numpy.polyfit(numpy.log10([lr for lr, _ in along]), [loss for _, loss in along], 2)
        assert 2 * slope[0] == pytest.approx(shape["curvature"]) and slope @ [0, 0, 1] > 0
        assert 10 ** (-slope[1] / (2 * slope[0])) == pytest.approx(shape["vertex"])
        assert min(loss for _, loss in along) == pytest.approx(shape["loss"])
        for point in variant["points"]:
            assert point["mean_loss"] is None or f"{point['mean_loss']:.4f} at " in found.alt
    assert "failed at 0.0318" in found.alt and "1,000 held-out sentences" in found.alt
    for variant in rates["variants"]:
        variant["chosen"] = variant["parabola"] = None
    assert rates_picture(rates).alt.count("no rate chosen yet") == 2
    for variant in rates["variants"]:
        for point in variant["points"]:
            point["runs"], point["mean_loss"] = (
                [{"seed": 1, "loss": None, "accuracy": None, "error": "x"}],
                None,
            )
    assert draw(rates) is None


def test_a_method_keeps_its_colour_and_its_shape():
    one, other = palette.looks(made("six")), palette.looks(made("ranks"))
    assert list(one)[: len(METHODS)] == list(METHODS) and other.items() <= one.items()
    assert len({(look.colour, look.marker) for look in one.values()}) == len(one)
    first = list(one.values())[: len(palette.SERIES)]
    assert len({look.colour for look in first}) == len({look.marker for look in first}) == len(first)


# From linear RGB to what eyes without one kind of cone see of it (Machado, Oliveira and Fernandes 2009).
CONES = {
    "all": numpy.eye(3),
    "no L": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no M": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no S": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour: str) -> numpy.ndarray:
    part = numpy.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return numpy.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(light: numpy.ndarray) -> numpy.ndarray:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = numpy.array(to_xyz) @ light.clip(0, 1) / [0.9505, 1, 1.089]
    root = numpy.where(xyz > 0.008856, numpy.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return numpy.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


@pytest.mark.parametrize("ground", palette.GROUND)
def test_colours_are_told_apart_by_all_eyes(ground):
    values = palette.variables(ground)
    methods = [values[name] for name in values if name.startswith("method")]
    assert min(contrast(colour, values["ground"]) for colour in methods) >= 3
    assert min(contrast(values[name], values["ground"]) for name in ("ink", "muted", "accent")) >= 4.5
    for cones in CONES.values():
        seen = [lab(numpy.array(cones) @ linear(colour)) for colour in methods]
        assert min(numpy.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 10
    assert palette.GROUND[ground] == values["ground"] and len(set(values.values())) == len(values)


def test_the_page_in_a_browser(tmp_path, monkeypatch):
    comparison, pictures = made("nasty"), pictures_of("nasty")
    monkeypatch.setattr(page, "comparison_pictures", lambda comparison: pictures)
    page.write_comparison(comparison, tmp_path)
    (dataset,) = comparison["datasets"]
    for shown in views(tmp_path / "report.html"):
        boxes = picture_boxes(shown)
        assert len(boxes) == len(pictures) and all(box["width"] > 300 < box["height"] + 200 for box in boxes)
        labels = shown.locator("#data1-variants tbody tr th bdi").all_inner_texts()
        assert labels == [variant["label"] for variant in dataset["variants"]]
        assert shown.locator("#data1-every-run tbody tr").count() == comparison["planned"]


def test_a_step_at_which_a_run_was_no_number_is_left_out_of_the_curve():
    """Logits that overflow in fp16, say: the record then has null, and the page is drawn all the same."""
    measured = ([[10, 0.5, 80.0], [20, None, None]], [[10, 0.5, 90.0], [20, 0.4, 91.0]])
    runs = [{"status": "done", "validation": rows} for rows in measured]
    assert costs.curve({"runs": runs}, "validation", 2) == [(10, 85.0)]


def test_pictures_of_an_earlier_comparison_do_not_stay(tmp_path):
    for name in ("rank.png", "accuracy-2.png", "mine.png", "rank of mine.png"):
        (tmp_path / name).write_bytes(b"")
    written = page.write_comparison(made("six"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*written, "mine.png", "rank of mine.png"]
    )
