"""People's own files, read right: the formats, what ends a line, what quotes a cell, a column's name."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path

import datasets
import pandas
import pyarrow
import pytest
from pyarrow import parquet

from lora_from_scratch.data import files
from lora_from_scratch.data.files import open_table, read_rows
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.errors import UserError

TEXTS = ["plain", 'with "quotes"', "commas, and ; and |", "café 🎬", "a\ttab", "two\nlines", '"all of it"']
ROWS = [(text, i % 2) for i, text in enumerate(TEXTS)]


def texts_of(path, content, **selection):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = read_rows(path, Selection(**selection))
    return list(zip(rows.texts, rows.labels, rows.numbers, strict=True))


def frame() -> pandas.DataFrame:
    return pandas.DataFrame(ROWS, columns=["text", "label"])


def as_parquet() -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": TEXTS, "label": [label for _, label in ROWS]}), buffer)
    return buffer.getvalue()


WRITERS = {
    "d.csv": lambda: frame().to_csv(index=False).encode(),
    "d.Tsv": lambda: frame().to_csv(index=False, sep="\t").encode(),
    "d.json": lambda: frame().to_json(orient="records", indent=1).encode(),
    "d.jsonl": lambda: frame().to_json(orient="records", lines=True).encode(),
    "D.NDJSON": lambda: "\r\n".join(json.dumps({"label": b, "text": a}) for a, b in ROWS).encode(),
    "d.parquet": as_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_pandas_and_others_write_is_read_back(tmp_path, name):
    written = WRITERS[name]()
    for path, content in ((tmp_path / name, written), (tmp_path / f"{name}.GZ", gzip.compress(written))):
        read = texts_of(path, content)
        assert [text for text, _, _ in read] == [text.strip() for text in TEXTS]
        assert [int(label) for _, label, _ in read] == [label for _, label in ROWS]


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_line_ends_at_newline_and_carriage_return_alone(tmp_path, character):
    """str.splitlines would end it at each of these; the public file of IMDB sentences holds U+0085."""
    text = f"one{character}two"
    for name, content in (
        ("d.csv", f"text,label\n{text},1\r\nx,0\ry,1\n"),
        ("q.csv", f'text,label\n"{text}","1"\r\nx,0\ry,1\n'),
        ("d.tsv", f"text\tlabel\n{text}\t1\r\nx\t0\ry\t1\n"),
        (
            "d.jsonl",
            f'{{"text": "{text}", "label": 1}}\r\n{{"text": "x", "label": 0}}\r{{"text": "y", "label": 1}}',
        ),
    ):
        if name.endswith("jsonl") and character < " ":
            continue  # JSON allows no control characters
        first = 1 if name.endswith("jsonl") else 2
        assert [(t, str(b), n) for t, b, n in texts_of(tmp_path / name, content)] == [
            (text, "1", first),
            ("x", "0", first + 1),
            ("y", "1", first + 2),
        ]


def test_a_cell_may_be_as_long_as_it_likes(tmp_path):
    long = "so good " * 100_000
    for name, content in (
        ("d.csv", f'text,label\n"{long}",1\n'),
        ("d.tsv", f"text\tlabel\n{long}\t1\n"),
        ("d.jsonl", json.dumps({"text": long, "label": 1})),
    ):
        assert texts_of(tmp_path / name, content)[0][0] == long.strip()


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('"so" it goes\t1\nthe end"\t0\n', ['"so" it goes', 'the end"']),  # as GLUE writes: characters
        ('"a\t1\nb"\t0\n', ['"a', 'b"']),
        ('"\t1\n""\t0\n', ['"', '""']),
        ('"a ""b"" c"\t1\nplain\t0\n', ['a "b" c', "plain"]),  # as pandas writes: they enclose
        ('"a\tb"\t1\nplain\t0\n', ["a\tb", "plain"]),
        ('"two\nlines"\t1\nplain\t0\n', ["two\nlines", "plain"]),
        ('"all"\t"1"\n"of it"\t"0"\n', ["all", "of it"]),
        ('5" screen\t1\n"all"\t0\n', ['5" screen', '"all"']),  # one bare mark: all are characters
        ("plain\t1\nother\t0\n", ["plain", "other"]),
    ],
)
def test_quotation_marks_of_glue_and_of_pandas_are_told_apart(tmp_path, content, texts):
    assert [t for t, _, _ in texts_of(tmp_path / "d.tsv", "text\tlabel\n" + content)] == texts


@pytest.mark.parametrize("alphabet", ['a"\t ,', 'a"\n ,'])
def test_any_texts_that_pandas_writes_between_tabs_come_back(tmp_path, alphabet):
    draw = random.Random(0)
    for _ in range(200):
        texts = ["".join(draw.choices(alphabet, k=draw.randint(1, 6))) + "x" for _ in range(3)]
        written = pandas.DataFrame({"text": texts, "label": [0, 1, 0]}).to_csv(index=False, sep="\t")
        assert [t for t, _, _ in texts_of(tmp_path / "d.tsv", written)] == [t.strip() for t in texts], written


@pytest.mark.parametrize("delimiter", list(",;|\t"))
@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
def test_the_header_says_the_delimiter(tmp_path, name, delimiter):
    content = delimiter.join(["text", "label"]) + "\n" + delimiter.join(["fine", "1"]) + "\n"
    assert texts_of(tmp_path / name, content) == [("fine", "1", 2)]


def test_commas_in_texts_between_semicolons(tmp_path):
    content = '"id";"text";"label"\n1;sharp, funny, kind;1\n2;"dull; slow";0\n'
    assert [t for t, _, _ in texts_of(tmp_path / "d.csv", content)] == ["sharp, funny, kind", "dull; slow"]


@pytest.mark.parametrize("header", ["text, label", " TEXT ,Label", "Sentence,label ", "\ufefftext,label"])
def test_columns_by_their_usual_names_whatever_the_spaces_and_the_case(tmp_path, header):
    assert texts_of(tmp_path / "d.csv", f"{header}\nfine, 1\n") == [("fine", "1", 2)]


def test_a_name_to_the_letter_comes_first(tmp_path):
    assert texts_of(tmp_path / "d.csv", "Text,text,label\na,b,1\n")[0][0] == "b"
    assert texts_of(tmp_path / "d.csv", "text,sentence,label\na,b,1\n")[0][0] == "b"
    named = {"text_column": " review TEXT", "label_column": "stars"}
    assert texts_of(tmp_path / "d.csv", "Review text ,stars,label\na,5,1\n", **named) == [("a", "5", 2)]


def test_rows_keep_their_line_where_a_text_has_several_lines(tmp_path):
    content = 'text,label\n\n"a\r\n\nb",1\n\nc,0\n'
    assert texts_of(tmp_path / "d.csv", content) == [("a\r\n\nb", "1", 3), ("c", "0", 7)]
    assert texts_of(tmp_path / "d.json", '\n[{"text": "a", "label": 1}, {"label": 0, "text": "b"}]') == [
        ("a", 1, 1),
        ("b", 0, 2),
    ]


def test_blank_texts_are_left_out_when_asked(tmp_path):
    with pytest.warns(UserWarning, match=r"2 of 4 texts are blank \(line 2 first\), left out"):
        rows = texts_of(tmp_path / "d.csv", "text,label\n ,\na,1\n,1\nb,0\n", drop_blank=True)
    assert rows == [("a", "1", 3), ("b", "0", 5)]
    content = '{"text": null, "label": 1}\n{"text": NaN}\n{"text": "b", "label": 0}\n'
    with pytest.warns(UserWarning, match="2 of 3 texts are blank"):
        assert texts_of(tmp_path / "d.jsonl", content, drop_blank=True) == [("b", 0, 3)]


def test_numbers_are_texts_too(tmp_path):
    assert texts_of(tmp_path / "d.jsonl", '{"text": 10, "label": 1.0}') == [("10", 1.0, 1)]


def test_parquet_as_datasets_writes_it_keeps_the_names_of_its_ids(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])}
    )
    written = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    written.to_parquet(str(tmp_path / "d.parquet"))
    rows = read_rows(tmp_path / "d.parquet", Selection())
    assert (rows.labels, rows.label_names, rows.place(1)) == ([1, 0], ["b", "a"], f"{rows.source}, row 2")


@pytest.mark.parametrize("names", [["b", "a", "a"], ["", "b"], ["b", "\ud800"], ["b", 1], [], "ab", None])
def test_parquet_with_names_of_ids_that_are_none(tmp_path, names):
    features = {"label": {"names": names}, "text": {}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.table({"text": ["x", "y"], "label": [1, 0]}).replace_schema_metadata(metadata)
    parquet.write_table(table, tmp_path / "d.parquet")
    assert read_rows(tmp_path / "d.parquet", Selection()).label_names is None


def test_parquet_of_categories(tmp_path):
    frame = pandas.DataFrame({"text": ["x", "y"], "label": pandas.Categorical(["good", "bad"])})
    frame.to_parquet(tmp_path / "d.parquet")
    assert read_rows(tmp_path / "d.parquet", Selection()).labels == ["good", "bad"]


def test_a_table_gives_all_columns(tmp_path):
    (tmp_path / "d.csv").write_text("id,text,id\n1,a,2\n")
    (tmp_path / "d.jsonl").write_text('{"a": 1}\n{"b": [2], "a": null}\n')
    table = open_table(tmp_path / "d.csv")
    assert (table.columns, list(table.rows)) == (["id", "text", "id"], [(2, ["1", "a", "2"])])
    table = open_table(tmp_path / "d.jsonl")
    assert (table.columns, list(table.rows)) == (["a", "b"], [(1, [1, None]), (2, [None, [2]])])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'text,label\n"good","1"\n"bad","0', "line 3: a quotation mark opens"),
        (b'text,label\n"good",1\nbad,0"\n"so,1', "line 4: a quotation mark opens"),
        (b'text;label\n"a f;"ine film";"2"\nb;1\n', "line 2: ';' expected after"),
        (b"id,text,label\n\xc3,good,1\n2,bad,0\n", "line 2: not UTF-8"),
    ],
)
def test_what_is_read_at_once_is_refused_as_row_by_row(tmp_path, monkeypatch, content, message):
    for large in (1 << 40, 0):
        monkeypatch.setattr(files, "LARGE", large)
        with pytest.raises(UserError, match=message):
            texts_of(tmp_path / "d.csv", content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", b"\n[\xff]", "d.json, line 2: not UTF-8; save the file as UTF-8"),
        (
            "d.parquet.gz",
            gzip.compress(b"PAR1", mtime=0)[:-1],
            "d.parquet.gz: cannot be read (Compressed file ended before the end-of-stream marker was "
            "reached); check the file, or give another",
        ),
    ],
)
def test_no_sentence_stands_inside_another(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        texts_of(Path(name), content)
    assert str(caught.value) == message


def test_rows_that_fill_the_memory(tmp_path, monkeypatch):
    def collect(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(files, "collect", collect)
    with pytest.raises(UserError, match=r"d.csv: its rows take more memory than there is; give it in parts"):
        texts_of(tmp_path / "d.csv", b"text,label\ngood,1\n")


def test_a_damaged_gz_that_would_be_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 0)
    with pytest.raises(UserError, match=r"d.csv.gz: cannot be read \(CRC check failed"):
        texts_of(tmp_path / "d.csv.gz", gzip.compress(b"text,label\ngood,1\nbad,0\n")[:-8] + bytes(8))


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.csv.gz"])
def test_a_large_file_reads_as_a_small_one(tmp_path, monkeypatch, name):
    draw = random.Random(0)
    read = at_once = 0
    for _ in range(500):
        alphabet = draw.choice(["abc ,", 'ab"', 'a"\t ,', 'a"\n,;', "a\r ", "é\x85,", "a\0"])
        header = draw.choice([["text", "label"], ["label", "id", "text"], ["text", "label", "text2"]])
        rows = [["".join(draw.choices(alphabet, k=draw.randint(0, 5))) for _ in header] for _ in range(3)]
        rows = draw.choice([rows, [["x" + cell for cell in row] for row in rows]])
        if draw.random() < 0.5:  # as a writer would write it
            frame = pandas.DataFrame(rows, columns=header)
            content = frame.to_csv(index=False, sep="\t" if "tsv" in name else ",")
        else:
            delimiter = draw.choice(",\t;")
            content = "\n".join(delimiter.join(row) for row in [header, *rows])
        content = draw.choice(["", "\ufeff"]) + content
        data = content.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        outcomes = []
        for large in (1 << 40, 0):
            monkeypatch.setattr(files, "LARGE", large)
            try:
                rows_read = read_rows(tmp_path / name, Selection())
                outcomes.append((rows_read.texts, rows_read.labels, list(rows_read.numbers)))
            except UserError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1], content
        read += isinstance(outcomes[1], tuple)
        at_once += isinstance(outcomes[1], tuple) and isinstance(rows_read.numbers, range)
    assert read > 100 and at_once > 30, (read, at_once)
