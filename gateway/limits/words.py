"""The fields that tell a client where it stands.

OpenAI's: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers. ``remaining`` is what would be
admitted at this moment, ``reset`` when all of a burst would be, as a duration such as ``120ms`` or ``6m0s``.
"""

from __future__ import annotations


def fields(rpm: int, tpm: int, rooms: tuple[int, int, int, int]) -> list[tuple[str, str]]:
    """For limits of requests and tokens a minute, 0 for none; rooms as :meth:`Purse.rooms` gives them."""
    said = []
    if rpm:
        said = [
            ("x-ratelimit-limit-requests", str(rpm)),
            ("x-ratelimit-remaining-requests", str(rooms[0])),
            ("x-ratelimit-reset-requests", duration(rooms[1])),
        ]
    if tpm:
        said += [
            ("x-ratelimit-limit-tokens", str(tpm)),
            ("x-ratelimit-remaining-tokens", str(rooms[2])),
            ("x-ratelimit-reset-tokens", duration(rooms[3])),
        ]
    return said


def duration(ns: int) -> str:
    """As OpenAI writes durations, never shorter than it is: ``0s``, ``17ms``, ``1.204s``, ``6m0s``."""
    ms = -(-ns // 1_000_000)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    s, ms = divmod(ms, 1000)
    minutes, s = divmod(s, 60)
    text = f"{s}.{ms:03d}s" if ms else f"{s}s"
    return f"{minutes}m{text}" if minutes else text
