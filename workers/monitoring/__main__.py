"""Write the files that are made from the lists: `python -m penstock.workers.monitoring [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

from .files import files

for name, text in files().items():
    path = Path(*sys.argv[1:2], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
