"""Every sentence that bad input is answered with: to be read from top to bottom.

A row is what somebody did (arguments of `run.py`, after files were put into an empty folder) and the whole
line that answers it. An error ends with exit status 2 and leaves nothing behind; a warning lets the command
go on. No line has more than 200 characters, and each ends in what to do.
"""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch
from conftest import SHARED
from safetensors.torch import save_file

from lora_from_scratch.base.load import BUNDLED_MODEL, load_model, load_tokenizer
from lora_from_scratch.cli import main as cli
from lora_from_scratch.formats import tensors
from lora_from_scratch.formats.adapted import Adapted
from lora_from_scratch.methods import METHODS as KNOWN
from lora_from_scratch.methods.prefix import Prefix, PrefixSettings


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
ENCLOSE = "enclose a text that holds the delimiter in quotation marks, or mend the header"
NO_HEADER = (
    "if that is a row, put text and label above, else name its columns with --text-column and --label-column"
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
        "warning: d.jsonl, line 2: half of a surrogate pair, which is no character, is read as U+FFFD; rows "
        "with one: 1; write the file again to mend them",
        jsonl_of('{"text": "a", "label": 1}', r'{"text": "b \ud83d", "label": 0}'),
    ),
    Case(
        "two halves apart",
        LOAD + "d.json",
        "warning: d.json, row 1: half of a surrogate pair, which is no character, is read as U+FFFD; rows "
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
        "no header, long cells",
        CSV,
        "error: d.csv: the first line is 'why it is so good!!!!...', '\\x1f\\x1f\\x1f\\x1f\\x1f\\...', ...; "
        f"{NO_HEADER}",
        {"d.csv": f"why it is so good{'!' * 99},{chr(31) * 99},1\n"},
    ),
    Case(
        "names of columns that a terminal cannot show",
        CSV,
        "error: d.csv: no column sentence or text; name one of 'two lines', 'my text' and 1 more "
        "with --text-column",
        {"d.csv": '"two\nlines","\x1b[31m","my text"\na,1,b\n'},
    ),
    Case(
        "names of columns that nobody types",
        JSONL,
        "error: d.jsonl: no column sentence or text; rename one of its 2 columns, whose names are none "
        "that one types",
        jsonl_of(json.dumps({"\ud800": "a", "x" * 200: 1})),
    ),
    Case(
        "a number of ten thousand digits",
        JSONL,
        "error: d.jsonl, line 1: not JSON (Exceeds the limit (4300 digits) for integer string conversion: "
        "value has 10000 d); write one object a line, or one array",
        jsonl_of('{"text": "a", "label": ' + "9" * 10_000 + "}"),
    ),
    Case(
        "a damaged .gz, and no UTF-8 before the damage",
        LOAD + "d.csv.gz",
        "error: d.csv.gz: cannot be read (CRC check failed 0x0 != 0x2f6f60da); check the file, or give "
        "another",
        {"d.csv.gz": gzip.compress(b"text,label\n\xff,1\n", mtime=0)[:-8] + bytes(8)},
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
        "Excel's line about the delimiter, and then no header",
        CSV,
        f"error: d.csv: the first line is '17', 'so good'; {NO_HEADER}",
        {"d.csv": "sep=;\n17;so good\n"},
    ),
    Case(
        "the header again, of another program",
        CSV,
        "error: d.csv, line 4: the header again (files put together?); delete this line",
        {"d.csv": "id,text,label\n1,good,1\n2,bad,0\n\ufeffID,Text,Label\n3,fine,1\n"},
    ),
    Case(
        "one column as text and label",
        CSV + " --text-column label",
        "error: d.csv: 'label' is named as text and as label; name the other with its flag",
        csv_of(*TWO),
    ),
    Case(
        "columns as pandas writes them by default",
        LOAD + "d.json",
        "error: d.json: one object of columns; write one a row (in pandas orient='records')",
        {"d.json": '{"text": {"0": "good"}, "label": {"0": 1}}'},
    ),
    Case(
        "UTF-16 without its mark",
        CSV,
        "error: d.csv, line 1: UTF-16 or no text at all; save the file as UTF-8",
        {"d.csv": "text,label\ngood,1\n".encode("utf-16-le")},
    ),
    Case(
        "halves of characters in a label",
        JSONL,
        "warning: d.jsonl, line 1: half of a surrogate pair, which is no character, is read as U+FFFD; rows "
        "with one: 1; write the file again to mend them",
        jsonl_of(r'{"text": "a", "label": "x\ud83d"}', '{"text": "b", "label": "y"}'),
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
        "nan among words",
        CSV,
        "error: d.csv, line 4: the label is 'NaN', which is no value; fill it in",
        csv_of("a,good", "b,bad", "c,NaN"),
    ),
    Case(
        "marks that are part of a label",
        CSV,
        "error: d.csv, line 2: the label '\"good\"' has its marks in it; delete the space before",
        csv_of('"a", "good"', '"b", "bad"'),
    ),
    Case(
        "what one does not see in a label",
        JSONL,
        "warning: d.jsonl: the labels 'good', 'good\\u200b' differ by case or spaces alone, and are 2 "
        "classes; spell them alike if they are one",
        jsonl_of('{"text": "a", "label": "good"}', r'{"text": "b", "label": "good\u200b"}'),
    ),
    Case(
        "a class with nothing to train on",
        LOAD + "d --limit-train 1",
        "warning: no sentence of 'bad' to train on; add some, or leave it out",
        {"d/train.csv": "text,label\ngood,good\nbad,bad\n", "d/dev.csv": "text,label\na,bad\nb,good\n"},
    ),
    Case(
        "a class with nothing to measure on",
        LOAD + "d",
        "warning: no sentence of 'bad' to measure on; add some, or leave it out",
        {"d/train.csv": "text,label\ngood,good\nbad,bad\n", "d/dev.csv": "text,label\nb,good\n"},
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

FILM = "sentence\tlabel\ngood\t1\nbad\t0\n"
CONFIG = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}
ON_BUNDLE = "--dataset bundled --dry-run --model "


def tuned(**values: object) -> dict[str, str | bytes]:
    """A checkpoint's folder, as far as it is read before it is refused."""
    return {"tuned/config.json": json.dumps({**CONFIG, **values}), "tuned/model.safetensors": b""}


def pickled() -> None:
    Path("tuned").mkdir()
    for path in (path for path in BUNDLED_MODEL.iterdir() if path.suffix == ".json"):
        Path("tuned", path.name).symlink_to(path)
    Path("tuned/pytorch_model.bin").write_bytes(b"never opened")


def checkpoint(weights: bytes | None = None, **values: object) -> Callable[[], None]:
    """The bundle as a folder of its own, its configuration changed, or its weights."""

    def put() -> None:
        shutil.copytree(BUNDLED_MODEL, "tuned")
        config = json.loads(Path("tuned/config.json").read_text())
        Path("tuned/config.json").write_text(json.dumps({**config, **values}))
        if weights is not None:
            Path("tuned/model.safetensors").write_bytes(weights)

    return put


HUB: list[Case] = [  # offline; what a hub that is there says stands in test_hub.py
    Case(
        "a model that is nowhere",
        ON_BUNDLE + "you/no-model",
        "error: model 'you/no-model' is neither here nor cached, and the hub is out of reach: check the "
        "network and HF_HUB_OFFLINE, or use --model bundled",
    ),
    Case(
        "a dataset that is nowhere",
        LOAD + "tweet_eval/sentiment",
        "error: dataset 'tweet_eval/sentiment' is neither here nor cached, and the hub is out of reach: "
        "check the network and HF_HUB_OFFLINE, or use --dataset bundled",
    ),
    Case(
        "a name that the hub cannot have",
        ON_BUNDLE + "'my model'",
        "error: model 'my model' is neither here nor a name of the hub's kind, owner/name: check it, or use "
        "--model bundled",
    ),
    Case(
        "a path to a model that is not there",
        ON_BUNDLE + "runs/full/tuned",
        "error: model 'runs/full/tuned' is not a folder; --model takes a hub id, a folder or 'bundled'",
    ),
    Case(
        "a folder called as the model that is the default",
        "--dataset bundled --dry-run",
        "warning: model gpt2 is the folder ./gpt2 here, not the hub's: run elsewhere for that one, or say "
        "--model ./gpt2",
        lambda: Path("gpt2").symlink_to(BUNDLED_MODEL),
    ),
    Case(
        "a folder called as the dataset that is the default",
        "--model bundled --dry-run",
        "warning: dataset sst2 is ./sst2 here, not the hub's: for that one say --dataset nyu-mll/glue/sst2, "
        "for yours ./sst2",
        {"sst2/train.tsv": FILM, "sst2/dev.tsv": FILM},
    ),
    Case(
        "a folder called as a dataset of the hub",
        LOAD + "tweet_eval",
        "warning: dataset tweet_eval is ./tweet_eval here, not the hub's: for that one say --dataset "
        "cardiffnlp/tweet_eval, for yours ./tweet_eval",
        {"tweet_eval/train.tsv": FILM, "tweet_eval/dev.tsv": FILM},
    ),
    Case(
        "a folder without a configuration",
        ON_BUNDLE + "tuned",
        "error: model folder 'tuned' holds no config.json: name the folder of a checkpoint",
        {"tuned/model.safetensors": b""},
    ),
    Case(
        "a clone without git-lfs",
        ON_BUNDLE + "tuned",
        "error: tuned/tokenizer.json: only a pointer of git-lfs, not the file; fetch it with git lfs pull",
        {**tuned(), "tuned/tokenizer.json": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"},
    ),
    Case(
        "another architecture",
        ON_BUNDLE + "tuned",
        "error: model 'tuned' is of type distilbert: this project adapts GPT-2 alone; name a GPT-2",
        tuned(model_type="distilbert"),
    ),
    Case(
        "a size that no machine has",
        ON_BUNDLE + "tuned",
        "error: model 'tuned': config.json is damaged (n_embd is 9999999999); copy it anew",
        tuned(n_embd=9999999999),
    ),
    Case(
        "a configuration that is cut off",
        ON_BUNDLE + "tuned",
        "error: model 'tuned': config.json is damaged (Expecting value: line 1 column 16 (char 15)); copy it "
        "anew",
        {**tuned(), "tuned/config.json": '{"model_type": '},
    ),
    Case(
        "label ids from 1",
        ON_BUNDLE + "tuned",
        "error: model 'tuned': id2label in config.json has the ids 1, 2: number them from 0",
        tuned(id2label={"1": "poor", "2": "good"}),
    ),
    Case(
        "a checkpoint without its tokenizer",
        ON_BUNDLE + "tuned",
        "error: model 'tuned' has no tokenizer: copy its tokenizer.json into the folder",
        tuned(),
    ),
    Case(
        "a tokenizer that is cut off",
        ON_BUNDLE + "tuned",
        "error: model 'tuned' has no tokenizer that loads (Expecting value: line 1 column 1 (char 0)): "
        "copy it anew",
        {**tuned(), "tuned/tokenizer.json": b""},
    ),
    Case(
        "the tokenizer of another model",
        ON_BUNDLE + "tuned",
        "error: model 'tuned' has embeddings of 50 tokens, but its tokenizer has 8192: copy tokenizer.json "
        "anew from where the model was trained",
        checkpoint(vocab_size=50),
    ),
    Case(
        "a configuration of more blocks",
        "predict --adapter tuned text",
        "error: model 'tuned': config.json asks for 9 blocks, but its weights have 4: copy both anew",
        checkpoint(n_layer=9),
    ),
    Case(
        "a configuration of more positions",
        "predict --adapter tuned text",
        "error: model 'tuned': transformer.wpe.weight is missing from its weights, or not in the shape that "
        "config.json asks for: copy both anew",
        checkpoint(n_positions=500),
    ),
    Case(
        "weights that are cut off",
        "predict --adapter tuned text",
        "error: the weights of model 'tuned' cannot be read: Error while deserializing header: header too "
        "small; copy them anew",
        checkpoint(b"1234"),
    ),
    Case(
        "a checkpoint in a pickle",
        ON_BUNDLE + "tuned",
        "error: model 'tuned' has its weights in a pickle alone (pytorch_model.bin), which is never opened: "
        "save it anew with transformers' save_pretrained",
        pickled,
    ),
]

HEAD = "base_model.model.score.weight"
FIRST = "base_model.model.transformer.h.0.attn.c_attn."
WTE = "base_model.model.transformer.wte."
PREDICT = "predict --model bundled --adapter adapter text"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def case_of(name: str) -> Callable[[], None]:
    """The files of one of the shared cases."""

    def put() -> None:
        if not (folder := SHARED / "cases" / name).exists():
            pytest.skip(f"no {folder}")
        shutil.copytree(folder, ".", dirs_exist_ok=True)

    return put


def adapter(
    folder: str = "adapter",
    tensors: dict[str, tuple[int, ...]] | None = None,
    fill: float = 0.1,
    **keys: object,
) -> Callable[[], None]:
    """An adapter for the bundled base as PEFT writes it, but for some keys, and tensors by shape (): none."""

    def put() -> None:
        shapes = {f"{FIRST.replace('.0.', f'.{i}.')}lora_A.weight": (2, 256) for i in range(4)}
        shapes |= {name.replace("lora_A", "lora_B"): (768, 2) for name in shapes} | {HEAD: (2, 256)}
        shapes |= tensors or {}
        values = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "target_modules": ["c_attn"], **keys}
        Path(folder).mkdir(parents=True)
        Path(folder, "adapter_config.json").write_text(json.dumps(values))
        contents = {name: torch.full(shape, fill) for name, shape in shapes.items() if shape}
        save_file(contents, Path(folder, "adapter_model.safetensors"))

    return put


def several(*puts: Callable[[], None]) -> Callable[[], None]:
    def put_all() -> None:
        for put in puts:
            put()

    return put_all


def with_file(name: str, content: bytes, instead_of: str = "") -> Callable[[], None]:
    def put() -> None:
        adapter()()
        Path(instead_of or name).unlink(missing_ok=True)
        Path(name).write_bytes(content)

    return put


def trained(shape: tuple[int, ...], **metadata: str) -> Callable[[], None]:
    """A file of the format for any method, with a head of that shape."""

    def put() -> None:
        Path("adapter").mkdir()
        save_file(
            {"score.weight": torch.ones(shape)},
            "adapter/trained.safetensors",
            {"base": "bundled", **metadata},
        )

    return put


def prefixes() -> None:
    """A folder of prefixes for the bundled base."""
    tokenizer, settings = load_tokenizer("bundled"), PrefixSettings()
    model = load_model("bundled", ["bad", "good"], tokenizer.pad_token_id)
    Path("adapter").mkdir()
    adapted = Prefix().adapt(model, settings)
    tensors.save(Adapted(adapted, tokenizer, "bundled", "prefix", asdict(settings)), Path("adapter"))


CONFIG, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
NO_REGEX = "is no regular expression"
OR_LIST = "write .* for anything, or a list of names"
REGRESSION = "one output, a regression's: only classifiers are adapted here, with an output for each class"
NO_GPT2 = "is no part of GPT-2): this project adapts GPT-2 alone"
RESIZED = "the base has 8192: save the resized base, with its tokenizer, and name it with --model"
PICKLE = "is a pickle, never opened here: weights = torch.load("
UNFIT = "not implemented here: load it with PEFT"
NOT_HERE = "is not implemented here: load it with PEFT"
LFS = "only a pointer of git-lfs, not the file; fetch it with git lfs pull"
TOGETHER = "see that --model and the files belong together"
TAKE = "take another copy"
PASSED = "passed over, as without effect on the logits"
RID = "delete them there to be rid of this"
BLOCK = "transformer.h.0.attn.c_attn"


def inside(name: str, answer: str, files: object = None, arguments: str = PREDICT) -> Case:
    return Case(name, arguments, answer, files)


UNKNOWN_BASE = "warning: adapter does not say on which base's weights it was trained: "
UNKNOWN_BASE += "make sure that --model names its own"
SEALED = (
    "or a file beside it is damaged, or was changed by hand: they do not have the digest of what was written"
)


def sealed(then: Callable[[], None]) -> Callable[[], None]:
    """A head that this project wrote, and what happened to it afterwards."""

    def put() -> None:
        tokenizer = load_tokenizer("bundled")
        model = load_model("bundled", ["bad", "good"], tokenizer.pad_token_id).requires_grad_(False)
        model.score.requires_grad_(True)
        Path("adapter").mkdir()
        tensors.save(Adapted(model, tokenizer, "bundled"), Path("adapter"))
        then()

    return put


def change(name: str, old: bytes, new: bytes) -> Callable[[], None]:
    return lambda: Path(name).write_bytes(Path(name).read_bytes().replace(old, new)) and None


def flip_the_last_bit() -> None:
    data = bytearray(Path("adapter/trained.safetensors").read_bytes())
    data[-1] ^= 1
    Path("adapter/trained.safetensors").write_bytes(data)


ADAPTERS: list[Case] = [
    inside("adapter-plain", UNKNOWN_BASE, case_of("adapter-plain")),
    inside("adapter-null-modules-to-save", UNKNOWN_BASE, case_of("adapter-null-modules-to-save")),
    inside(
        "adapter-unknown-key",
        f"warning: {CONFIG}: {PASSED}: of_later, zeta; {RID}",
        adapter(zeta=1, of_later={"a": 2}),
    ),
    inside(
        "adapter-training-keys",
        f"warning: {CONFIG}: {PASSED}: eva_config, loftq_config, runtime_config; {RID}",
        adapter(loftq_config={"bits": 4}, eva_config={"rho": 2}, runtime_config={"x": 1}),
    ),
    inside(
        "adapter-many-keys",
        f"warning: {CONFIG}: {PASSED}: a, b, c and 1 more; {RID}",
        adapter(a=1, b=2, c=3, d=4),
    ),
    inside(
        "adapter-glob-not-regex",
        f"error: {CONFIG}: target_modules '*.c_attn' {NO_REGEX} (nothing to repeat at position 0): {OR_LIST}",
        case_of("adapter-glob-not-regex"),
    ),
    inside(
        "adapter-exclude-glob",
        f"error: {CONFIG}: exclude_modules '*.c_fc' {NO_REGEX} (nothing to repeat at position 0): {OR_LIST}",
        adapter(exclude_modules="*.c_fc"),
    ),
    inside(
        "adapter-rank-pattern-no-regex",
        f"error: {CONFIG}: rank_pattern '[' {NO_REGEX} (unterminated character set at position 8): {OR_LIST}",
        adapter(rank_pattern={"[": 2}),
    ),
    inside(
        "adapter-one-output",
        f"error: {WEIGHTS}: score.weight is (1, 256), {REGRESSION}",
        case_of("adapter-one-output"),
    ),
    inside(
        "adapter-one-output-null-modules",
        f"error: {WEIGHTS}: score.weight is (1, 256), {REGRESSION}",
        adapter(tensors={HEAD: (1, 256)}, modules_to_save=None),
    ),
    inside(
        "head-one-output",
        f"error: adapter/trained.safetensors: score.weight is (1, 256), {REGRESSION}",
        trained((1, 256)),
    ),
    inside(
        "adapter-resized-embeddings",
        f"error: {WEIGHTS}: its embeddings were resized to 3 tokens, {RESIZED}",
        case_of("adapter-resized-embeddings"),
    ),
    inside(
        "adapter-resized-by-3",
        f"error: {WEIGHTS}: its embeddings were resized to 8195 tokens, {RESIZED}",
        adapter(tensors={f"{WTE}weight": (8195, 256)}),
    ),
    inside(
        "adapter-resized-under-lora",
        f"error: {WEIGHTS}: its embeddings were resized to 8200 tokens, {RESIZED}",
        adapter(tensors={f"{WTE}base_layer.weight": (8200, 256)}),
    ),
    inside(
        "adapter-overflowing",
        f"error: {WEIGHTS}: the update of {BLOCK} is not finite in fp32: take an earlier checkpoint",
        case_of("adapter-overflowing"),
    ),
    inside(
        "adapter-alpha-overflows",
        f"error: {WEIGHTS}: the update of {BLOCK} is not finite in fp32: take an earlier checkpoint",
        adapter(lora_alpha=1e39),
    ),
    inside(
        "adapter-product-overflows",
        f"error: {WEIGHTS}: the update of {BLOCK} is not finite in fp32: take an earlier checkpoint",
        adapter(fill=1e20),
    ),
    inside(
        "adapter-in-checkpoint-folder",
        "error: run holds no adapter, but run/checkpoint-500 does: name that folder",
        case_of("adapter-in-checkpoint-folder"),
        "predict --model bundled --adapter run text",
    ),
    inside(
        "adapter-last-checkpoint",
        "error: run holds no adapter, but run/checkpoint-1000 does: name that folder",
        several(adapter("run/checkpoint-1000"), adapter("run/checkpoint-500")),
        "predict --model bundled --adapter run text",
    ),
    inside(
        "adapter-under-its-name",
        "error: out holds no adapter, but out/final/default does: name that folder",
        adapter("out/final/default"),
        "predict --adapter out text",
    ),
    inside(
        "adapter-of-distilbert",
        f"error: adapter: its base is distilbert-base-uncased (classifier.bias {NO_GPT2}",
        case_of("adapter-of-distilbert"),
    ),
    inside(
        "adapter-of-llama",
        f"error: adapter: its base is me/llama (model.layers.0.self_attn.q_proj {NO_GPT2}",
        adapter(
            tensors={"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (2, 8)},
            base_model_name_or_path="me/llama",
        ),
        "predict --adapter adapter text",
    ),
    inside(
        "adapter-of-bert-without-a-name",
        "error: adapter: its base is another architecture "
        f"(bert.encoder.layer.0.attention.self.query {NO_GPT2}",
        adapter(tensors={"base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight": (8, 2)}),
    ),
    inside(
        "adapter-pickle",
        f'error: adapter/adapter_model.bin {PICKLE}"adapter_model.bin", weights_only=True); '
        'safetensors.torch.save_file(weights, "adapter_model.safetensors")',
        with_file("adapter/adapter_model.bin", b"\x80", instead_of=WEIGHTS),
    ),
    inside(
        "checkpoint-pickle",
        "error: model 'adapter' has its weights in a pickle alone (pytorch_model.bin), which is never "
        "opened: save it anew with transformers' save_pretrained",
        {"adapter/config.json": "{}", "adapter/pytorch_model.bin": "\x80"},
    ),
    inside("adapter-lfs-weights", f"error: {WEIGHTS}: {LFS}", with_file(WEIGHTS, POINTER)),
    inside("adapter-lfs-config", f"error: {CONFIG}: {LFS}", with_file(CONFIG, POINTER)),
    inside(
        "checkpoint-lfs",
        f"error: adapter/model.safetensors: {LFS}",
        {"adapter/config.json": "{}", "adapter/model.safetensors": POINTER},
    ),
    inside(
        "adapter-dora-without-magnitudes",
        f"error: {WEIGHTS}: {FIRST}lora_magnitude_vector is missing: {TOGETHER}",
        adapter(use_dora=True),
    ),
    inside("adapter-qalora", f"error: {CONFIG}: use_qalora = True {NOT_HERE}", adapter(use_qalora=True)),
    inside("adapter-bias", f"error: {CONFIG}: bias = 'all' {NOT_HERE}", adapter(bias="all")),
    inside(
        "adapter-replication",
        f"error: {CONFIG}: layer_replication = [[0, 4]] {NOT_HERE}",
        adapter(layer_replication=[[0, 4]]),
    ),
    inside(
        "adapter-dora-by-its-tensors",
        f"error: {WEIGHTS}: {FIRST}lora_magnitude_vector is DoRA's, and use_dora not true in "
        "adapter_config.json: set it there, or take another copy",
        adapter(tensors={f"{FIRST}lora_magnitude_vector": (768,)}),
    ),
    inside(
        "adapter-lora-bias-by-its-tensors",
        f"error: {WEIGHTS}: {FIRST}lora_B.bias belongs to lora_bias, {UNFIT}",
        adapter(tensors={f"{FIRST}lora_B.bias": (768,)}),
    ),
    inside(
        "adapter-rank-text",
        f"error: {CONFIG}: r = '2' is of the wrong kind: it has to be a whole number above 0",
        adapter(r="2"),
    ),
    inside(
        "adapter-alpha-zero",
        f"error: {CONFIG}: lora_alpha = 0 is of the wrong kind: it has to be a number above 0",
        adapter(lora_alpha=0),
    ),
    inside(
        "adapter-alpha-below-zero",
        f"error: {CONFIG}: alpha_pattern = {{'c_attn': -2}} is of the wrong kind: "
        "it has to be a table of numbers above 0",
        adapter(alpha_pattern={"c_attn": -2}),
    ),
    inside(
        "adapter-dropout-one",
        f"error: {CONFIG}: lora_dropout = 1 is of the wrong kind: it has to be a number from 0 to below 1",
        adapter(lora_dropout=1),
    ),
    inside(
        "adapter-dropout-below-zero",
        f"error: {CONFIG}: lora_dropout = -0.1 is of the wrong kind: it has to be a number from 0 to below 1",
        adapter(lora_dropout=-0.1),
    ),
    inside(
        "adapter-layers-of-a-regex",
        f"error: {CONFIG}: layers_to_transform needs a list of target_modules, as in PEFT: leave one out",
        adapter(target_modules=".*c_attn", layers_to_transform=0),
    ),
    inside(
        "adapter-pattern-of-no-layers",
        f"error: {CONFIG}: layers_pattern needs layers_to_transform, as in PEFT: leave it out",
        adapter(layers_pattern="h"),
    ),
    inside(
        "adapter-of-another-kind",
        f"error: {CONFIG}: peft_type is not LORA, the only kind that is implemented here: train one",
        adapter(peft_type="IA3"),
    ),
    inside(
        "adapter-of-pefts-prefixes",
        f"error: {CONFIG}: PEFT's PREFIX_TUNING learns keys and values, and moves the tokens behind them, as "
        "--method prefix does not: load it with PEFT",
        adapter(peft_type="PREFIX_TUNING"),
    ),
    inside(
        "prefixes-merged",
        "error: adapter: what --method prefix trains has no place in a plain checkpoint; use predict or "
        "evaluate on the folder as it is",
        prefixes,
        "merge --adapter adapter --out merged",
    ),
    inside(
        "prefixes-in-peft",
        "error: adapter holds no adapter_config.json: it is not in the format that PEFT reads",
        prefixes,
        "verify --adapter adapter",
    ),
    inside(
        "prefixes-of-no-settings",
        "error: adapter/trained.safetensors: the settings of --method prefix are damaged (--prefix-length "
        f"must be at least 1, not -3): {TAKE}",
        trained((2, 256), method="prefix", settings='{"prefix_length": -3}'),
    ),
    inside(
        "prefixes-that-are-not-there",
        f"error: adapter/trained.safetensors: transformer.h.0.prefix is missing: {TOGETHER}",
        trained((2, 256), method="prefix"),
    ),
    inside(
        "prefixes-longer-than-the-model-reads",
        "error: --prefix-length 129: this model has 128 positions; ask for fewer",
        None,
        f"{LOAD} bundled --method prefix --prefix-length 129",
    ),
    inside(
        "prefixes-of-none",
        "error: --prefix-length must be at least 1, not 0",
        None,
        f"{LOAD} bundled --method prefix --prefix-length 0",
    ),
    inside(
        "adapter-config-cut",
        f"error: {CONFIG}: cannot be read as JSON (Expecting value: line 1 column 1 (char 0)): {TAKE}",
        with_file(CONFIG, b""),
    ),
    inside(
        "adapter-weights-cut",
        f"error: {WEIGHTS}: not a whole safetensors file "
        f"(Error while deserializing header: header too small): {TAKE}",
        with_file(WEIGHTS, b"1234"),
    ),
    inside(
        "adapter-a-target-too-many",
        f"error: {WEIGHTS}: base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight is missing: {TOGETHER}",
        adapter(target_modules=["c_attn", "c_fc"]),
    ),
    inside(
        "adapter-a-layer-too-few",
        f"error: {WEIGHTS}: unexpected tensor {FIRST.replace('.0.', '.1.')}lora_A.weight: {TOGETHER}",
        adapter(layers_to_transform=[0, 2, 3]),
    ),
    inside(
        "adapter-targets-nothing",
        f"error: {CONFIG}: target_modules ['q_proj'] matches nothing in this model: "
        "name its own base with --model",
        adapter(target_modules=["q_proj"]),
    ),
    inside(
        "adapter-without-a-head",
        f"error: {WEIGHTS}: the classifier head, score.weight, is missing: train one, in PEFT with "
        "task_type SEQ_CLS",
        adapter(tensors={HEAD: ()}, task_type="CAUSAL_LM"),
    ),
    inside(
        "head-without-a-base",
        "error: adapter: no base is named; name it with --model",
        trained((2, 256), base=""),
        "predict --adapter adapter text",
    ),
    inside(
        "folder-of-something-else",
        "error: adapter holds no adapter: name a folder with adapter_config.json or trained.safetensors or "
        "config.json",
        {"adapter/notes.txt": ""},
    ),
    inside(
        "head-labels-damaged",
        "error: adapter/trained.safetensors: the label names are damaged "
        f"(not a list of different names): {TAKE}",
        trained((2, 256), labels="3"),
    ),
    inside(
        "head-labels-too-many",
        f"error: adapter/trained.safetensors: 3 label names, but score.weight is (2, 256): {TAKE}",
        trained((2, 256), labels='["a", "b", "c"]'),
    ),
    inside(
        "head-a-bit-flipped",
        f"error: adapter/trained.safetensors {SEALED}; {TAKE}",
        sealed(flip_the_last_bit),
    ),
    inside(
        "head-a-label-changed",
        f"error: adapter/trained.safetensors {SEALED}; {TAKE}",
        sealed(change("adapter/trained.safetensors", b"good", b"mood")),
    ),
    inside(
        "rank-above-the-width",
        f"warning: rank 257 is above 256, the width of {BLOCK}: "
        "no update has a higher rank, so that rank does as much",
        None,
        f"{LOAD} bundled --rank 257",
    ),
    inside(
        "rank-of-a-million",
        "error: rank 1000000 is above 6144: A and B would dwarf W0; take a small one, such as 4",
        None,
        f"{LOAD} bundled --rank 1000000",
    ),
    inside(
        "rank-of-a-narrow-layer",
        "error: rank 2049 is above 2048: A and B would dwarf W0; take a small one, such as 4",
        None,
        f"{LOAD} bundled --rank 2049 --target-modules attn.c_proj",
    ),
]


@cache
def saved_head(labels: tuple[str, ...], large: float) -> bytes:
    from lora_from_scratch.base.load import load_model, load_tokenizer
    from lora_from_scratch.formats import tensors
    from lora_from_scratch.formats.adapted import Adapted

    tokenizer = load_tokenizer("bundled")
    model = load_model("bundled", list(labels), tokenizer.pad_token_id)
    KNOWN["head"].adapt(model, None)
    model.score.weight.data = large * torch.linspace(-1, 1, 512).view(2, 256)
    with TemporaryDirectory() as folder:
        tensors.save(Adapted(model, tokenizer, "bundled"), Path(folder))
        return Path(folder, "trained.safetensors").read_bytes()


UNNAMED = ("LABEL_0", "LABEL_1")


def head(
    labels: tuple[str, ...] = UNNAMED, files: dict[str, str | bytes] | None = None, large: float = 1.0
) -> Callable[[], None]:
    """Puts a head that fits the bundled base into the folder `a`, and files beside it."""

    def put() -> None:
        Path("a").mkdir()
        Path("a/trained.safetensors").write_bytes(saved_head(labels, large))
        for name, content in (files or {}).items():
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return put


def trained_on(files: dict[str, str], name: str, **config: object) -> Callable[[], None]:
    """The same, with the record of a run on the dataset of that name."""

    def put() -> None:
        from lora_from_scratch.data.dataset import load_dataset

        head(("bad", "good"), files)()
        data = {"fingerprint": load_dataset(name).fingerprint()}
        record = {"config": {"dataset": name, "limit_train": None, "seed": 0, **config}, "data": data}
        Path("a/results.json").write_text(json.dumps(record))

    return put


PREDICT, TABLE = "predict --device cpu --adapter a ", "predict --device cpu --adapter a --dataset d.csv "
EVALUATE = "evaluate --device cpu --adapter a --dataset d.csv "
TEN = "text,label\n" + "".join(f"film {i},{('bad', 'good')[i % 2]}\n" for i in range(20))
GIVE = "give them no label with --drop-blank"
BLANK = {"d.csv": 'text,id\ngood,1\n ,2\n"",3\n'}
AFTERWARDS = [
    Case(
        "an empty text to label",
        PREDICT + "good ''",
        "error: text 2 of 2 is blank; leave it out, or give it no label with --drop-blank",
        head(),
    ),
    Case(
        "a text of spaces to label",
        PREDICT + "'  '",
        "error: text 1 of 1 is blank; leave it out, or give it no label with --drop-blank",
        head(),
    ),
    Case(
        "blank lines in a file of texts",
        PREDICT + "--file t.txt",
        f"error: t.txt: 2 of 4 texts are blank (line 2 first); {GIVE}",
        head(files={"t.txt": "good\n\n \nbad\n"}),
    ),
    Case(
        "a blank line in a file of texts",
        PREDICT + "--file t.txt",
        f"error: t.txt: 1 of 2 texts is blank (line 1); {GIVE}",
        head(files={"t.txt": "\xa0\r\nbad"}),
    ),
    Case(
        "blank lines that may be there",
        PREDICT + "--drop-blank --file t.txt",
        "warning: t.txt: 1 of 2 texts is blank (line 2), and gets no label, as --drop-blank asks",
        head(files={"t.txt": "good\n\n"}),
    ),
    Case(
        "blank cells in a table",
        TABLE + "--output o.csv",
        f"error: d.csv: 2 of 3 texts are blank (line 3 first); {GIVE}",
        head(files=BLANK),
    ),
    Case(
        "blank cells that may be there",
        TABLE + "--output o.csv --drop-blank",
        "warning: d.csv: 2 of 3 texts are blank (line 3 first), and get no label, as --drop-blank asks",
        head(files=BLANK),
    ),
    Case(
        "a table as lines",
        PREDICT + "--file d.csv",
        "error: 'd.csv' is a table, --file takes lines of text; label it with --dataset FILE "
        "--text-column NAME --output labelled.csv",
        head(files=BLANK),
    ),
    Case(
        "a workbook as lines",
        PREDICT + "--file d.txt",
        "error: d.txt: an Excel workbook or another archive; export the sheet as CSV (UTF-8)",
        head(files={"d.txt": b"PK\x03\x04 and more"}),
    ),
    Case(
        "an older workbook as lines",
        PREDICT + "--file d.xls",
        "error: d.xls: an Excel workbook or another archive; export the sheet as CSV (UTF-8)",
        head(files={"d.xls": b"\xd0\xcf\x11\xe0 and more"}),
    ),
    Case(
        "lines that are not UTF-8",
        PREDICT + "--file t.txt",
        "error: t.txt, line 2: not UTF-8; save the file as UTF-8",
        head(files={"t.txt": b"good\ncaf\xe9\n"}),
    ),
    Case(
        "no file of lines",
        PREDICT + "--file t.txt",
        "error: --file t.txt: no such file; name one with a text on each line",
        head(),
    ),
    Case(
        "a folder of lines",
        PREDICT + "--file a",
        "error: --file a: no such file; name one with a text on each line",
        head(),
    ),
    Case(
        "texts from two places",
        PREDICT + "--file t.txt good",
        "error: texts, --file and --dataset do not go together; give one of them",
        head(),
    ),
    Case(
        "a table without a file for it",
        TABLE,
        "error: --dataset needs a file for the labelled table; name it with --output labelled.csv",
        head(files=BLANK),
    ),
    Case(
        "an output without a table",
        PREDICT + "--output o.csv good",
        "error: --output belongs to a table; name it with --dataset",
        head(),
    ),
    Case(
        "a column without a table",
        PREDICT + "--text-column words good",
        "error: --text-column belongs to a table; name it with --dataset",
        head(),
    ),
    Case(
        "JSON and a table",
        TABLE + "--json --output o.jsonl",
        "error: --json does not go with --dataset; end --output in .jsonl",
        head(files=BLANK),
    ),
    Case(
        "an output of another kind",
        TABLE + "--output o.xlsx",
        "error: --output 'o.xlsx' must end in .csv, .tsv or .jsonl",
        head(files=BLANK),
    ),
    Case(
        "an output that is there",
        TABLE + "--output o.csv",
        "error: --output 'o.csv' is there already; name another, or move it away",
        head(files={**BLANK, "o.csv": ""}),
    ),
    Case(
        "the table as its own output",
        TABLE + "--output d.csv",
        "error: --output 'd.csv' is there already; name another, or move it away",
        head(files=BLANK),
    ),
    Case(
        "an output below a file",
        TABLE + "--output d.csv/o.csv",
        "error: --output 'd.csv/o.csv' cannot be written: 'd.csv' is not a folder; name another",
        head(files=BLANK),
    ),
    Case(
        "a column of the same name",
        TABLE + "--output o.csv",
        "error: d.csv has a column predicted_label already, which is to be added; rename it there",
        head(files={"d.csv": "text,predicted_label\ngood,1\n"}),
    ),
    Case(
        "two columns of one name",
        TABLE + "--output o.jsonl",
        "error: d.csv: two columns have one name, which a .jsonl cannot hold; write a .csv",
        head(files={"d.csv": "text,id,id\ngood,1,2\n"}),
    ),
    Case(
        "a table without such a column",
        TABLE + "--output o.csv --text-column review",
        "error: d.csv: no column 'review'; name one of text, id with --text-column",
        head(files=BLANK),
    ),
    Case(
        "a folder as a table",
        PREDICT + "--dataset a --output o.csv",
        "error: --dataset a is no file; give predict one table, such as reviews.csv",
        head(),
    ),
    Case(
        "a hub id as a table",
        PREDICT + "--dataset sst2 --output o.csv",
        "error: --dataset sst2 is no file; give predict one table, such as reviews.csv",
        head(),
    ),
    Case(
        "a list as a text to label",
        "predict --adapter a --dataset d.jsonl --output o.csv",
        f"error: d.jsonl, line 1: the text is a list; {ONE_VALUE}",
        head(files={"d.jsonl": '{"text": ["good"]}\n'}),
    ),
    Case(
        "a text longer than the model reads",
        PREDICT + "good '" + "a film " * 100 + "'",
        "warning: 1 of 2 texts was cut at 128 tokens, all that the model can read; label their parts instead",
        head(),
    ),
    Case(
        "logits that overflow",
        PREDICT + "'a fine film'",
        "error: no label for 'a fine film': the logits are not finite, so the weights are too large; train "
        "them again, with a lower --lr",
        head(large=3e38),
    ),
    Case(
        "too many label names",
        PREDICT + "good --label-names bad good fine",
        "error: --label-names takes 2 names that differ, one for each id, not 'bad', 'good', 'fine'",
        head(),
    ),
    Case(
        "label names that are the same",
        EVALUATE + "--label-names good 'good '",
        "error: --label-names takes 2 names that differ, one for each id, not 'good', 'good '",
        head(files={"d.csv": TEN}),
    ),
    Case(
        "a blank label name",
        PREDICT + "good --label-names good ''",
        "error: --label-names takes 2 names that differ, one for each id, not 'good', ''",
        head(),
    ),
    Case(
        "label names where there are others",
        PREDICT + "good --label-names good bad",
        "error: --label-names: the files carry names already, 'bad', 'good'; leave the flag out",
        head(("bad", "good")),
    ),
    Case(
        "labels without names",
        EVALUATE,
        "error: d.csv, line 2: label 'bad' is none of 'LABEL_0', 'LABEL_1'; say what the model's ids mean: "
        "--label-names, in their order",
        head(files={"d.csv": TEN}),
    ),
    Case(
        "measured every no steps",
        "--eval-every 0",
        "error: --eval-every must be at least 1, not 0",
    ),
    Case(
        "no token at all",
        EVALUATE + "--max-length 0",
        "error: --max-length must be at least 1, not 0",
        head(files={"d.csv": TEN}),
    ),
    Case(
        "fewer tokens than none",
        EVALUATE + "--max-length -1",
        "error: --max-length must be at least 1, not -1",
        head(files={"d.csv": TEN}),
    ),
    Case(
        "more tokens than positions, evaluating",
        EVALUATE + "--max-length 500",
        "error: --max-length 500: this model has 128 positions; ask for fewer",
        head(("bad", "good"), {"d.csv": TEN}),
    ),
    Case(
        "evaluating where results are",
        EVALUATE + "--output-dir a",
        "error: --output-dir a holds results already; name another",
        head(files={"d.csv": TEN, "a/results.json": "{}"}),
    ),
    Case(
        "evaluating on what was trained on",
        EVALUATE,
        "warning: 18 of 20 sentences were trained on, so the figures flatter: evaluate on others",
        trained_on({"d.csv": TEN}, "d.csv"),
    ),
    Case(
        "evaluating on some of what was trained on",
        "evaluate --adapter a --dataset e.csv",
        "warning: 5 of 6 sentences were trained on, so the figures flatter: evaluate on others",
        trained_on({"d.csv": TEN, "e.csv": "\n".join([*TEN.splitlines()[:6], "new,bad"])}, "d.csv"),
    ),
    Case(
        "no folder of an adapter",
        "predict --adapter b good",
        "error: --adapter b: no such folder; name the one that a run printed at its end",
    ),
    Case(
        "a file as an adapter",
        "verify --adapter b",
        "error: --adapter b: no such folder; name the one that a run printed at its end",
        {"b": ""},
    ),
]

RUN = "--model bundled --dataset bundled --device cpu --precision fp32 "
TRAIN = "--model bundled --dataset d.csv --device cpu --precision fp32 --method head --output-dir o "
METHODS = ", ".join(KNOWN)
FRONT_DOOR = [
    Case("a flag", "--ranks 4", "error: unrecognized arguments: --ranks; did you mean --rank?"),
    Case("a flag with =", "--epoch=3", "error: unrecognized arguments: --epoch; did you mean --epochs?"),
    Case(
        "a flag with _",
        "--text_column x",
        "error: unrecognized arguments: --text_column; did you mean --text-column?",
    ),
    Case(
        "a flag like no other",
        "--no-such-flag",
        "error: unrecognized arguments: --no-such-flag; see run.py --help",
    ),
    Case(
        "a flag that is needed",
        "predict --adaptor a good",
        "error: unrecognized arguments: --adaptor; did you mean --adapter?",
    ),
    Case(
        "a flag of a command",
        "--adapter a",
        "error: unrecognized arguments: --adapter; did you mean run.py predict or merge or evaluate or "
        "verify or explain or inspect or truncate, before the flags?",
    ),
    Case(
        "no flag of predict",
        "predict --adapter a --max-length 3",
        "error: unrecognized arguments: --max-length; see run.py predict --help",
    ),
    Case(
        "no flag of tune, and like another by its dashes alone",
        "tune --lr 0.1",
        "error: unrecognized arguments: --lr; see run.py tune --help",
    ),
    Case(
        "a flag without its value",
        "--model",
        "error: argument --model: expected one argument; see run.py --help",
    ),
    Case("no number", "--rank four", "error: argument --rank: invalid int value: 'four'; see run.py --help"),
    Case("a command", "predcit --adapter a", "error: 'predcit' is no command; did you mean run.py predict?"),
    Case("another command", "eval --adapter a", "error: 'eval' is no command; did you mean run.py evaluate?"),
    Case("no command", "train", "error: 'train' is no command; see run.py --help"),
    Case(
        "a command behind its flags",
        "--model bundled verify",
        "error: unrecognized arguments: verify; did you mean run.py verify, before the flags?",
    ),
    Case("a method alone", "lora", "error: 'lora' is no command; did you mean --method lora?"),
    Case(
        "a file alone", "d.csv", "error: 'd.csv' is no command; did you mean --dataset d.csv?", {"d.csv": ""}
    ),
    Case(
        "a method",
        "--method lorra",
        f"error: argument --method: invalid choice: 'lorra'; did you mean lora? (choose from {METHODS})",
    ),
    Case(
        "no method",
        "--method magic",
        f"error: argument --method: invalid choice: 'magic' (choose from {METHODS}); see run.py --help",
    ),
    Case(
        "a recipe",
        "--recipe publish",
        "error: argument --recipe: invalid choice: 'publish'; did you mean published? "
        "(choose from published)",
    ),
    Case(
        "a precision",
        "evaluate --precision BF16",
        "error: argument --precision: invalid choice: 'BF16'; did you mean bf16? (choose from auto, fp32, "
        "bf16, fp16)",
    ),
    Case(
        "an argument that is not UTF-8",
        "predict --adapter a 'caf\udce9'",
        r"error: the argument caf\xe9 is not UTF-8; type it or rename it in UTF-8",
        head(),
    ),
    Case(
        "an argument that the locale does not take",
        "predict --adapter a 'caf\udcc3\udca9'",
        "error: the argument caf\u00e9 is UTF-8, which this locale does not take; set PYTHONUTF8=1",
        head(),
    ),
    Case(
        "a folder that is not UTF-8",
        "--output-dir \udcff\udcfe",
        r"error: the argument \xff\xfe is not UTF-8; type it or rename it in UTF-8",
    ),
    Case(
        "a dataset with a name too long",
        "--dataset " + "x" * 300 + ".csv",
        f"error: dataset '{'x' * 27}...': File name too long; check the path",
    ),
    Case(
        "a folder below a file",
        RUN + "--output-dir f/o/p",
        "error: --output-dir 'f/o/p' cannot be written: 'f' is not a folder; name another",
        {"f": ""},
    ),
    Case(
        "a folder behind a broken link",
        RUN + "--output-dir f",
        "error: --output-dir 'f' cannot be written: a link to nothing; name another",
        lambda: Path("f").symlink_to("nothing"),
    ),
    Case(
        "a folder with a name too long",
        RUN + "--output-dir o/" + "x" * 250,
        f"error: --output-dir 'o/{'x' * 55}...' cannot be written: File name too long; name another",
    ),
    Case(
        "a merged model below a file",
        "merge --adapter a --out f/o",
        "error: --out 'f/o' cannot be written: 'f' is not a folder; name another",
        head(files={"f": ""}),
    ),
    Case(
        "a merged model where something is",
        "merge --adapter a --out a",
        "error: --out a is not an empty folder; name a new one",
        head(),
    ),
    Case(
        "an evaluation below a file",
        EVALUATE + "--output-dir d.csv/o",
        "error: --output-dir 'd.csv/o' cannot be written: 'd.csv' is not a folder; name another",
        head(files={"d.csv": TEN}),
    ),
    Case(
        "splits of one file",
        "--model bundled --dry-run --dataset d.csv --validation-split test",
        "warning: --validation-split is of no use with one file, and left out; it names a split of a folder "
        "or of the hub",
        {"d.csv": TEN},
    ),
    Case(
        "a flag of another method",
        "--model bundled --dry-run --dataset d.csv --method head --rank 3",
        "warning: --rank is no flag of --method head, and left out; see run.py --help",
        {"d.csv": TEN},
    ),
    Case(
        "more tokens than positions",
        "--model bundled --dry-run --dataset d.csv --max-length 129",
        "error: --max-length 129: this model has 128 positions; ask for fewer",
        {"d.csv": TEN},
    ),
    Case(
        "validation sentences that are trained on",
        "--model bundled --dry-run --dataset d",
        "warning: 2 of 20 validation sentences are also trained on, so the figures flatter: take them out "
        "of either, or delete what a file repeats",
        {"d/train.csv": "text,label\nfilm 1,good\nfilm 2,bad\n", "d/dev.csv": TEN},
    ),
    Case(
        "fp16 on a CPU",
        "--model bundled --dry-run --dataset d.csv --device cpu --precision fp16",
        "warning: --precision fp16 is slow on a CPU; leave it out for a faster one, or take fp32",
        {"d.csv": TEN},
    ),
    Case(
        "one class alone",
        TRAIN.replace("d.csv", ".") + "--batch-size 2 --epochs 8 --lr 0.01",
        "warning: every prediction is 'a' at --lr 0.01 (the default here is 0.003); try that",
        {
            "train.csv": "text,label\n" + "fine,a\n" * 6 + "fine,b\n" * 2,
            "dev.csv": "text,label\n" + "fine,a\n" * 6 + "fine,b\n" * 4,
        },
    ),
]

TRAIN = "--model bundled --dataset . --method full --device cpu --precision fp32"
Y = "y" * 27
SIX_A = "text\tlabel\n" + "fine\ta\n" * 6
SAME = {"train.tsv": SIX_A + "fine\tb\n" * 2, "dev.tsv": SIX_A + "fine\tb\n" * 4}
APART = {
    "train.tsv": "text\tlabel\n" + "a masterpiece\ta\nso dull\tb\n" * 4,
    "dev.tsv": "text\tlabel\n" + "a masterpiece\ta\n" * 3 + "so dull\tb\n" * 2,
}

FRONT_DOOR += [
    Case(
        "a positive class that is none",
        f"{LOAD}bundled --positive-class Positive",
        "error: --positive-class 'Positive': there is no such label; choose one of 'negative', 'positive'",
    ),
    Case(
        "a positive class among many, by its number",
        f"{LOAD}moods.csv --positive-class 1",
        "error: --positive-class '1': there is no such label; choose one of 'angry', 'calm', 'glad', ...",
        {
            "moods.csv": "text,label\n"
            + "".join(f"x,{mood}\n" * 3 for mood in ("calm", "angry", "sad", "glad"))
        },
    ),
    Case(
        "a positive class as long as a page",
        f"{LOAD}mine.csv --positive-class {'x' * 999}",
        f"error: --positive-class '{'x' * 27}...': there is no such label; choose one of '{Y}...', 'z'",
        {"mine.csv": "text,label\n" + f"a,{'y' * 999}\nb,z\n" * 5},
    ),
    Case(
        "a result no better than the commonest class",
        f"{TRAIN} --epochs 4 --lr 1e-3",
        "warning: accuracy 60.00 % (31.3 to 83.2) does not beat always saying 'a' (60.00 %): "
        "train longer (--epochs) or take another --lr",
        SAME,
    ),
    Case(
        "a result on too few sentences",
        f"{TRAIN} --epochs 8 --lr 1e-3",
        "warning: accuracy 100.00 % (56.6 to 100.0) is not shown to beat always saying 'a' (60.00 %): "
        "measure on more sentences",
        APART,
    ),
]


def rates_of(method: str, settings: dict[str, object]) -> str:
    variant = {"method": method, "settings": settings, "chosen": 1e-3}
    return json.dumps({"kind": "rates", "sources": {"data": "", "base_weights": ""}, "variants": [variant]})


MANY = "compare --model bundled --dataset bundled --dry-run"
PLANS = [
    Case(
        "a seed twice",
        "compare --seeds 0 1 0",
        "error: --seeds names a seed twice: its run would count twice; name it once",
    ),
    Case("a seed below 0", "compare --seeds -1", "error: --seed must lie in 0 .. 2^63 - 1, not -1"),
    Case("no margin at all", "compare --margin 0", "error: --margin must be a positive number, not 0"),
    Case(
        "a method that is none",
        "compare --methods lora prelayr",
        "error: argument --methods: invalid choice: 'prelayr'; did you mean prelayer? "
        f"(choose from {METHODS})",
    ),
    Case(
        "nothing to tune",
        "tune --methods none",
        f"error: argument --methods: invalid choice: 'none' (choose from {METHODS.removeprefix('none, ')}); "
        "see run.py tune --help",
    ),
    Case(
        "a value out of its range, among others",
        "compare --methods lora head --rank 4 0",
        "error: --rank must be at least 1, not 0",
    ),
    Case(
        "a switch that is neither",
        "compare --plain maybe",
        "error: argument --plain: takes yes and no, not 'maybe'; see run.py compare --help",
    ),
    Case(
        "a flag of no method that is compared",
        f"{MANY} --methods head none --rank 4 8",
        "warning: --rank is no flag of --methods head none, and left out; see run.py --help for whose it is",
    ),
    Case(
        "rates that nobody tuned",
        "compare --recipe tuned",
        "error: --recipe tuned: there is no runs/tune/rates.json; run.py tune writes it, or name another "
        "with --rates",
    ),
    Case(
        "rates that are none",
        "compare --recipe published tuned --rates mine.json",
        "error: --rates mine.json is no file that run.py tune wrote; name another",
        {"mine.json": '{"lr": 1e-3}'},
    ),
    Case(
        "a folder of another kind",
        "tune --output-dir there",
        "error: --output-dir 'there' holds a results.json of another kind, or damaged; name another, or move "
        "that away",
        {"there/results.json": '{"kind": "comparison"}'},
    ),
    Case(
        "a run's folder",
        "compare --output-dir there",
        "error: --output-dir 'there' holds a results.json of another kind, or damaged; name another, or move "
        "that away",
        {"there/results.json": '{"kind": "run"}'},
    ),
    Case(
        "a damaged record",
        "compare --output-dir there",
        "error: --output-dir 'there' holds a results.json of another kind, or damaged; name another, or move "
        "that away",
        {"there/results.json": '{"kind": "comp'},
    ),
    Case(
        "a folder without a name",
        "compare --output-dir ''",
        "error: argument --output-dir: is empty; name a folder, or leave the flag out; see run.py compare "
        "--help",
    ),
    Case(
        "a comma at the end of a list",
        "compare --target-modules attn.c_attn,",
        "error: argument --target-modules: has a comma too many: 'attn.c_attn,'; see run.py compare --help",
    ),
    Case(
        "a layer without a name",
        f"{LOAD}bundled --target-modules ''",
        "error: --target-modules '' names no layer; name one, such as attn.c_attn",
    ),
    Case(
        "a layer without a name, among others",
        f"{LOAD}bundled --method dora --target-modules attn.c_attn ''",
        "error: --target-modules '' names no layer; name one, such as attn.c_attn",
    ),
    Case(
        "a list of layers without a name",
        "compare --target-modules '' attn.c_attn",
        "error: --target-modules '' names no layer; name one, such as attn.c_attn",
    ),
    Case(
        "layers that are none, among others",
        f"{MANY} --methods head lora --target-modules attn.c_attn nonsense",
        "error: target module 'nonsense' matches nothing; this model has attn.c_attn, attn.c_proj, mlp.c_fc, "
        "mlp.c_proj, score",
    ),
    Case(
        "rates of several datasets in one file",
        "tune --dataset bundled d.csv",
        "error: --dataset takes one value in tune, whose rates do not tell several apart; tune each into an "
        "--output-dir of its own",
        csv_of(*TWO),
    ),
    Case(
        "a dataset of one method's rates alone",
        "tune --methods head lora --dataset lora=d.csv",
        "error: --dataset takes one value in tune, whose rates do not tell several apart; tune each into an "
        "--output-dir of its own",
        csv_of(*TWO),
    ),
    Case(
        "a value of a method that is not compared",
        f"{MANY} --methods head lora --rank 4 dora=3",
        "error: --rank dora=...: dora is not among the --methods; name it there, or leave this out",
    ),
    Case(
        "a value of a method that has no such flag",
        f"{MANY} --methods head lora --rank head=3",
        "error: --rank head=...: head has no such flag; leave this out",
    ),
    Case(
        "one method's value of a wrong type",
        f"{MANY} --methods lora dora --rank 4 dora=three",
        "error: argument --rank: invalid int value: 'dora=three'; see run.py compare --help",
    ),
    Case(
        "rates of something else",
        f"{MANY} --methods head --recipe tuned --rates mine.json",
        "error: mine.json was not tuned on dataset 'bundled'; tune it with run.py tune, or name a rate with "
        "--lr",
        {"mine.json": rates_of("head", {})},
    ),
    Case(
        "the seeds of the tuning",
        f"{MANY} --methods head --recipe tuned --lr 1e-3 --rates mine.json --seeds 0 101",
        "warning: rates are tuned with seeds 100 101 102, and suit these; name others than 101",
        {"mine.json": rates_of("head", {})},
    ),
    Case(
        "a reference that is not compared",
        f"{MANY} --methods head lora --rank 4 8 --reference lora",
        "error: --reference 'lora' is not compared here; choose one of 'head', 'lora, rank 4', "
        "'lora, rank 8'",
    ),
    Case(
        "every layer, and one more",
        f"{LOAD}bundled --target-modules all-linear attn.c_attn",
        "error: --target-modules all-linear names every layer: leave the others out",
    ),
    Case(
        "a device without its part of PyTorch",
        "--model bundled --dataset bundled --device hpu --dry-run",
        "error: --device hpu: PyTorch cannot use it here (No module named 'torch.hpu'); "
        "try auto, cpu or cuda",
    ),
    Case(
        "more than anybody counts",
        f"{RUN}--batch-size 1000000000000000000 --dry-run",
        "error: --batch-size must be at most 1,000,000,000, not 1000000000000000000",
    ),
    Case(
        "nothing left beside what is held out",
        "tune --model bundled --dataset one.csv --dry-run",
        "error: nothing is left to train on: every row is part of a sentence held out; add others",
        {"one.csv": "text,label\na good film,1\na good film,1\na good,0\na good,0\n"},
    ),
]


@pytest.mark.filterwarnings("always::UserWarning")  # to be printed, not raised
@pytest.mark.usefixtures("few_sentences", "undrawn")
@pytest.mark.parametrize(
    "case", ROWS + LABELS + HUB + ADAPTERS + AFTERWARDS + FRONT_DOOR + PLANS, ids=lambda c: c.name
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
