"""Why: people ask how long their texts will take. How many does `predict` label in a second, on one thread?

    OMP_NUM_THREADS=1 python benchmarks/predict_rate.py --texts ../shared/data/sst2/train.tsv

LoRA on the bundled base, merged in memory, in fp32; what it has learned does not matter to the time, so it is
not trained. Texts are drawn from the file in turns, after one to warm up. Seconds are of CPU time, so that
other work on the machine counts as little as it can: what shares a core still makes them longer. Ends in one
JSON line.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from outcome import add_out, finish

from lora_from_scratch.core.surgery import merge_lora
from lora_from_scratch.data.dataset import load_labelled
from lora_from_scratch.formats.adapted import Adapted
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.predict import predict
from lora_from_scratch.runs.prepare import prepare

TURNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", required=True, help="a labelled file; the labels are not used")
    parser.add_argument("--texts-a-turn", type=int, default=1000, metavar="N")
    add_out(parser)
    flags = parser.parse_args()
    split, _ = load_labelled(flags.texts, ["0", "1"])
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).tolist()
    prepared = prepare(RunConfig(model="bundled", dataset="bundled", device="cpu"))
    adapted = Adapted(merge_lora(prepared.model.eval()), prepared.tokenizer, "bundled")
    rates = []
    for turn in range(TURNS + 1):
        part = order[turn * flags.texts_a_turn : (turn + 1) * flags.texts_a_turn]
        started = time.process_time()
        predict(adapted, [split.sentences[i] for i in part])
        rates.append(flags.texts_a_turn / (time.process_time() - started))
    rates = rates[1:]
    finish(flags.out, {"texts_per_cpu_second": {"median": median(rates), "range": [min(rates), max(rates)]}})


if __name__ == "__main__":
    main()
