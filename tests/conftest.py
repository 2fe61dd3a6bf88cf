"""Tests run against the installed package; the specification and the benchmarks come from the checkout."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
