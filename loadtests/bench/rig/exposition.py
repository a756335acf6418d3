"""Prometheus text, read back: enough of the format to add up a family and to look into a histogram."""

from __future__ import annotations

import re
import urllib.request

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)")


class Exposition:
    """One scrape of a /metrics page."""

    def __init__(self, text: str) -> None:
        self.samples = [(m[1], m[2] or "", float(m[3])) for m in map(_LINE.match, text.splitlines()) if m]

    @classmethod
    def scrape(cls, url: str) -> Exposition:
        """Fetch and read a page. Raise OSError when it does not answer."""
        with urllib.request.urlopen(url, timeout=10) as page:
            return cls(page.read().decode())

    def total(self, name: str, label: str = "") -> float:
        """Return the sum of a name's samples whose labels contain ``label``."""
        return sum(value for found, labels, value in self.samples if found == name and label in labels)

    def has(self, name: str) -> bool:
        """Say whether any sample has this name."""
        return any(found == name for found, _, _ in self.samples)

    def largest(self, name: str) -> float:
        """Return the largest sample of a name, 0 when there is none."""
        return max((value for found, _, value in self.samples if found == name), default=0.0)

    def buckets(self, name: str, label: str = "") -> dict[float, float]:
        """Return a histogram's cumulative counts by upper bound, summed over series whose labels contain ``label``."""
        found: dict[float, float] = {}
        for sample, labels, value in self.samples:
            bound = re.search(r'le="([^"]+)"', labels)
            if sample == f"{name}_bucket" and bound and label in labels:
                found[float(bound[1])] = found.get(float(bound[1]), 0.0) + value
        return found
