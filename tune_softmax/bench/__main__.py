"""`python -m tune_softmax.bench`: the bench of packs, where nothing but torch is installed."""

from __future__ import annotations

import sys

from tune_softmax.bench.packed import main

if __name__ == "__main__":
    sys.exit(main())
