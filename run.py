"""The front door: `python run.py --method lora --rank 4`, or `python run.py --help`."""

import sys

from lora_from_scratch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
