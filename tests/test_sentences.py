"""Every sentence that bad input is answered with: to be read from top to bottom.

A row is what somebody did (arguments of `run.py`, after files were put into an empty folder) and the whole
line that answers it. An error ends with exit status 2 and leaves nothing behind; a warning lets the command
go on. No line has more than 200 characters, and each ends in what to do.
"""

from __future__ import annotations

import gzip
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lora_from_scratch.cli import main as cli


class Case(NamedTuple):
    """What somebody did, and the line on stderr."""

    name: str
    arguments: str  # of run.py, split as a shell does
    answer: str  # "error: ..." or "warning: ..."
    files: dict[str, str | bytes] | Callable[[], None] | None = None  # put into the folder first


LOAD = "--model bundled --dry-run --dataset "


def csv_of(*rows: str) -> dict[str, str]:
    return {"d.csv": "text,label\n" + "".join(row + "\n" for row in rows)}


def jsonl_of(*rows: str) -> dict[str, str]:
    return {"d.jsonl": "".join(row + "\n" for row in rows)}


TWO = ("good,1", "bad,0")
CSV, TSV, JSONL = LOAD + "d.csv", LOAD + "d.tsv", LOAD + "d.jsonl"
MEND = "fill it in, or delete the row"
ONE_VALUE = "write it as one string or number"
NOT_JSON = "write one object a line, or one array"
TWICE = 'inside an enclosed cell write a quotation mark twice ("")'
ENCLOSE = "enclose a text that holds the delimiter in quotation marks"
NO_HEADER = (
    "if that is a row, put the names text and label above it, else name its columns with --text-column and "
    "--label-column"
)

ROWS = [
    Case("no file", LOAD + "d.csv", "error: dataset 'd.csv': no such file or folder; check the path"),
    Case(
        "an ending",
        LOAD + "d.txt",
        "error: d.txt: a dataset file ends in one of .csv, .tsv, .json, .jsonl, "
        ".ndjson, .parquet, each also .gz; rename or export it",
        {"d.txt": "good\n"},
    ),
    Case("empty", CSV, "error: d.csv holds no examples: give a file with a row for each text", {"d.csv": ""}),
    Case(
        "blank lines alone",
        CSV,
        "error: d.csv holds no examples: give a file with a row for each text",
        {"d.csv": "\n\n"},
    ),
    Case(
        "a header alone",
        TSV,
        "error: d.tsv holds no examples: give a file with a row for each text",
        {"d.tsv": "sentence\tlabel\n"},
    ),
    Case(
        "an empty array",
        LOAD + "d.json",
        "error: d.json holds no examples: give a file with a row for each text",
        {"d.json": "[]"},
    ),
    Case(
        "too few cells",
        TSV,
        f"error: d.tsv, line 3: 1 columns, where the header has 2; {ENCLOSE}",
        {"d.tsv": "sentence\tlabel\nfine\t0\nno tab here\n"},
    ),
    Case(
        "too many cells",
        CSV,
        f"error: d.csv, line 2: 3 columns, where the header has 2; {ENCLOSE}",
        csv_of("warm, funny,1"),
    ),
    Case(
        "an open quotation mark",
        CSV,
        "error: d.csv, line 3: a quotation mark opens a cell here, and nothing closes it; close it",
        csv_of("fine,0", '"open,1'),
    ),
    Case(
        "text after a closing mark",
        CSV,
        f"error: d.csv, line 2: ',' expected after '\"'; {TWICE}",
        csv_of('"so" good,1'),
    ),
    Case(
        "bytes of Latin-1",
        TSV,
        "error: d.tsv, line 3: not UTF-8; save the file as UTF-8",
        {"d.tsv": b"sentence\tlabel\nfine\t0\ncaf\xe9\t1\n"},
    ),
    Case(
        "UTF-16",
        CSV,
        "error: d.csv, line 1: UTF-16; save the file as UTF-8",
        {"d.csv": "text,label\ngood,1\n".encode("utf-16")},
    ),
    Case(
        "bytes of Latin-1 in JSON",
        JSONL,
        "error: d.jsonl, line 2: not UTF-8; save the file as UTF-8",
        {"d.jsonl": b'{"text": "a", "label": 1}\r{"text": "\xff", "label": 0}'},
    ),
    Case(
        "half of a surrogate pair",
        JSONL,
        "warning: d.jsonl, line 2: half of a surrogate pair, which is no character, is read as U+FFFD; texts "
        "with one: 1; write the file again to mend them",
        jsonl_of('{"text": "a", "label": 1}', r'{"text": "b \ud83d", "label": 0}'),
    ),
    Case(
        "two halves apart",
        LOAD + "d.json",
        "warning: d.json, row 1: half of a surrogate pair, which is no character, is read as U+FFFD; texts "
        "with one: 2; write the file again to mend them",
        {"d.json": r'[{"text": "\ude00a", "label": 1}, {"text": "\ud83d b \ud83d", "label": 0}]'},
    ),
    Case(
        "not JSON",
        JSONL,
        f"error: d.jsonl, line 2: not JSON (Expecting property name enclosed in double quotes); {NOT_JSON}",
        jsonl_of('{"text": "a", "label": 0}', '{"text": "b", '),
    ),
    Case(
        "an array cut short",
        LOAD + "d.json",
        "error: d.json, line 2: not JSON (Expecting value); mend or export it",
        {"d.json": '[{"text": "a", "label": 0},\n'},
    ),
    Case(
        "no object",
        JSONL,
        'error: d.jsonl, line 2: \'5\' is no JSON object; write {"text": ..., "label": ...} there',
        jsonl_of('{"text": "a", "label": 0}', "5"),
    ),
    Case(
        "a text that is a list",
        JSONL,
        f"error: d.jsonl, line 1: the text is a list; {ONE_VALUE}",
        jsonl_of('{"text": ["good"], "label": 0}'),
    ),
    Case(
        "a text that is an object",
        JSONL,
        f"error: d.jsonl, line 1: the text is an object; {ONE_VALUE}",
        jsonl_of('{"text": {"body": "good"}, "label": 0}'),
    ),
    Case(
        "a text that is true",
        JSONL,
        f"error: d.jsonl, line 1: the text is true or false; {ONE_VALUE}",
        jsonl_of('{"text": true, "label": 0}'),
    ),
    Case(
        "a text that is null",
        LOAD + "d.json",
        f"error: d.json, row 2: the text is null; {MEND}",
        {"d.json": '[{"text": "a", "label": 0}, {"text": null, "label": 1}]'},
    ),
    Case(
        "a text that is NaN",
        JSONL,
        f"error: d.jsonl, line 1: the text is nan; {MEND}",
        jsonl_of('{"text": NaN, "label": 0}'),
    ),
    Case(
        "a text that is not there",
        JSONL,
        f"error: d.jsonl, line 2: the text is null; {MEND}",
        jsonl_of('{"text": "a", "label": 0}', '{"label": 0}'),
    ),
    Case(
        "a label that is a list",
        JSONL,
        f"error: d.jsonl, line 1: the label is a list; {ONE_VALUE}",
        jsonl_of('{"text": "a", "label": [0, 2]}'),
    ),
    Case(
        "a label that is false",
        JSONL,
        f"error: d.jsonl, line 1: the label is true or false; {ONE_VALUE}",
        jsonl_of('{"text": "a", "label": false}'),
    ),
    Case(
        "a label that is infinite",
        JSONL,
        f"error: d.jsonl, line 1: the label is inf; {MEND}",
        jsonl_of('{"text": "a", "label": 1e999}'),
    ),
    Case(
        "an empty label", CSV, f"error: d.csv, line 3: the label is empty; {MEND}", csv_of("good,1", "bad, ")
    ),
    Case(
        "the header again",
        CSV,
        "error: d.csv, line 4: the header again (files put together?); delete this line",
        csv_of(*TWO, "text,label", *TWO),
    ),
    Case(
        "the header again, quoted",
        TSV,
        "error: d.tsv, line 3: the header again (files put together?); delete this line",
        {"d.tsv": '"text"\tlabel\na\t1\n"text"\t"label"\n'},
    ),
    Case(
        "a blank text",
        CSV,
        "error: d.csv: 1 of 3 texts is blank (line 3); leave them out with --drop-blank",
        csv_of("good,1", " ,1", "bad,0"),
    ),
    Case(
        "blank texts",
        JSONL,
        "error: d.jsonl: 2 of 3 texts are blank (line 2 first); leave them out with --drop-blank",
        jsonl_of('{"text": "a", "label": 1}', *['{"text": "\\t", "label": 1}'] * 2),
    ),
    Case(
        "blank texts, dropped",
        CSV + " --drop-blank",
        "warning: d.csv: 2 of 4 texts are blank (line 2 first), left out as --drop-blank asks",
        csv_of(",1", *TWO, "\u3000,0"),
    ),
    Case(
        "no header",
        TSV,
        f"error: d.tsv: the first line is 'the plot goes nowhere', '0'; {NO_HEADER}",
        {"d.tsv": "the plot goes nowhere\t0\nfine\t1\n"},
    ),
    Case(
        "no header, id first",
        CSV,
        f"error: d.csv: the first line is '17', 'dull'; {NO_HEADER}",
        {"d.csv": "17,dull\n18,fine\n"},
    ),
    Case(
        "no delimiter",
        CSV,
        "error: d.csv: no column sentence or text; name one of text:label with --text-column",
        {"d.csv": "text:label\ngood:1\n"},
    ),
    Case(
        "a column called otherwise",
        CSV,
        "error: d.csv: no column sentence or text; name one of id, 'review text', stars with --text-column",
        {"d.csv": "id,review text,stars\n1,good,5\n"},
    ),
    Case(
        "a label called otherwise",
        CSV,
        "error: d.csv: no column label; name one of text, stars with --label-column",
        {"d.csv": "text,stars\ngood,5\n"},
    ),
    Case(
        "a column that is not there",
        CSV + " --text-column review",
        "error: d.csv: no column 'review'; name one of text, label with --text-column",
        csv_of(*TWO),
    ),
    Case(
        "a column twice",
        CSV,
        "error: d.csv: two columns are called 'Text ', 'text '; rename one of them",
        {"d.csv": "Text ,label,text \na,1,b\n"},
    ),
    Case(
        "Excel under its own name",
        LOAD + "d.xlsx",
        "error: d.xlsx: an Excel workbook or another archive; export the sheet as CSV (UTF-8)",
        {"d.xlsx": b"PK\x03\x04rest"},
    ),
    Case(
        "Excel called CSV",
        CSV,
        "error: d.csv: an Excel workbook or another archive; export the sheet as CSV (UTF-8)",
        {"d.csv": b"PK\x03\x04rest"},
    ),
    Case(
        "old Excel",
        LOAD + "d.xls",
        "error: d.xls: an Excel workbook or another archive; export the sheet as CSV (UTF-8)",
        {"d.xls": b"\xd0\xcf\x11\xe0rest"},
    ),
    Case(
        "a pointer of git-lfs",
        CSV,
        "error: d.csv: only a pointer of git-lfs, not the file; fetch it with git lfs pull",
        {"d.csv": "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"},
    ),
    Case(
        "a .gz cut short",
        LOAD + "d.csv.gz",
        "error: d.csv.gz: cannot be read (Compressed file ended before "
        "the end-of-stream marker was reached); check the file, or give another",
        {"d.csv.gz": gzip.compress(b"text,label\ngood,1\nbad,0\n")[:-9]},
    ),
    Case(
        "no Parquet",
        LOAD + "d.parquet",
        "error: d.parquet: not whole as Parquet ('Parquet magic bytes not "
        "found in footer. Either the file is corrupted or this...'); write it again",
        {"d.parquet": b"PAR1 but nothing after it"},
    ),
    Case(
        "a folder without train",
        LOAD + "d",
        "error: dataset folder d holds 'dev.csv'; it needs train.csv, or another name as --train-split",
        {"d/dev.csv": "text,label\ngood,1\nbad,0\n"},
    ),
    Case(
        "a folder without validation",
        LOAD + "d",
        "error: dataset folder d holds 'train.tsv'; it needs "
        "validation or val or dev or test.csv, or another name as --validation-split",
        {"d/train.tsv": "text\tlabel\ngood\t1\nbad\t0\n"},
    ),
    Case(
        "an empty folder",
        LOAD + "d",
        "error: dataset folder d holds no file of rows; it needs train.csv, or another name as --train-split",
        {"d/notes.md": ""},
    ),
    Case(
        "a split in two files",
        LOAD + "d",
        "error: dataset folder d: both 'train.csv', 'train.jsonl' are there; move one away",
        {"d/train.csv": "", "d/train.jsonl": ""},
    ),
    Case(
        "a split that is not there",
        LOAD + "d --validation-split held",
        "error: dataset folder d holds "
        "'train.csv', 'val.csv'; it needs held.csv, or another name as --validation-split",
        {"d/train.csv": "text,label\ngood,1\nbad,0\n", "d/val.csv": ""},
    ),
]

CLASSES = "name the column of classes (--label-column), or make classes of them"

LABELS = [
    Case(
        "one class",
        CSV,
        "error: d.csv: every label is '1'; add rows of a second class",
        csv_of("good,1", "fine,1"),
    ),
    Case(
        "scores",
        CSV,
        f"error: d.csv: 4 labels in 4 rows, such as '0.125': scores or ids, not classes; {CLASSES}",
        csv_of("a,0.125", "b,0.25", "c,0.5", "d,1.0"),
    ),
    Case(
        "many scores",
        CSV,
        f"error: d.csv: 21 labels in 63 rows, such as '0': scores or ids, not classes; {CLASSES}",
        csv_of(*[f"text {i},{i % 21 / 20}" for i in range(63)]),
    ),
    Case(
        "ids as labels",
        JSONL,
        f"error: d.jsonl: 6 labels in 6 rows, such as 'u0': scores or ids, not classes; {CLASSES}",
        jsonl_of(*[f'{{"text": "t", "label": "u{i}"}}' for i in range(6)]),
    ),
    Case(
        "nan among numbers",
        CSV,
        "error: d.csv, line 4: the label is 'nan', where others are numbers; fill it in",
        csv_of("a,0.0", "b,1.0", "c,nan"),
    ),
    Case(
        "null among numbers",
        JSONL,
        "error: d.jsonl, line 2: the label is 'NULL', where others are numbers; fill it in",
        jsonl_of('{"text": "a", "label": 1}', '{"text": "b", "label": "NULL"}'),
    ),
    Case(
        "another case",
        CSV,
        "warning: d.csv: the labels 'Good', 'good' differ by case or spaces alone, and "
        "are 2 classes; spell them alike if they are one",
        csv_of("a,good", "b,bad", "c,Good"),
    ),
    Case(
        "other spaces",
        CSV,
        "warning: d.csv: the labels 'so so', 'soso' differ by case or spaces alone, "
        "and are 2 classes; spell them alike if they are one",
        csv_of("a,so so", "b,bad", "c,soso"),
    ),
    Case(
        "a class that train lacks",
        LOAD + "d",
        "error: d/dev.csv, line 3: label 'awful' is none of 'bad', 'good'; correct it, or leave the row out",
        {"d/train.csv": "text,label\na,bad\nb,good\n", "d/dev.csv": "text,label\nc,bad\nd,awful\n"},
    ),
    Case(
        "a number that train lacks",
        LOAD + "d",
        "error: d/dev.csv, line 2: label '0' is none of '1', '2'; correct it, or leave the row out",
        {"d/train.csv": "text,label\na,1\nb,2\n", "d/dev.csv": "text,label\nc,0\n"},
    ),
]

HUB: list[Case] = []

ADAPTERS: list[Case] = []

AFTERWARDS: list[Case] = []

FRONT_DOOR: list[Case] = []


@pytest.mark.parametrize(
    "case", ROWS + LABELS + HUB + ADAPTERS + AFTERWARDS + FRONT_DOOR, ids=lambda c: c.name
)
def test_the_sentence(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if callable(case.files):
        case.files()
    else:
        for name, content in (case.files or {}).items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(tmp_path.rglob("*"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            status = cli.main(shlex.split(case.arguments))
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "warning: "))
    ]
    assert case.answer in lines
    assert len(case.answer) <= 200
    if case.answer.startswith("error: "):
        assert (status, lines) == (2, [case.answer])
        assert sorted(tmp_path.rglob("*")) == before
