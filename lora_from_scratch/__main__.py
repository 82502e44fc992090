"""The front door wherever the package is installed: `python -m lora_from_scratch predict --adapter .`."""

import sys

from lora_from_scratch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
