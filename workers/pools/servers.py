"""Which backends are which member of a pool, and their columns in the tables.

Where the provider places the members, each is the backend at the URL it was placed at. Elsewhere the configuration
names the backends: one for each member if there are as many, else all of them are every member's, as one Service in
front of many Pods is.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...gateway.config import Backend, Published, places_itself
from .. import store
from ..expand import member_name


@dataclass(frozen=True, slots=True)
class Server:
    """A backend with its column; members: whose it is."""

    backend: Backend
    index: int
    members: tuple[int, ...]


class Servers:
    """Those of one pool in one generation."""

    def __init__(self, name: str, published: Published, members: int) -> None:
        self.generation = published.generation
        self.members = members
        model = published.config.models.get(name)
        backends = model.backends if model is not None and model.pool is not None else ()
        every = tuple(range(members))
        self.all: list[Server] = []
        #: whether each server is one member's
        self.apart = model is not None and (places_itself(model) or len(backends) >= members)
        #: whether the provider says where they are
        self.placed = model is not None and places_itself(model)
        for number, backend in enumerate(backends):
            whose = every
            if model is not None and places_itself(model):
                whose = tuple(i for i in every if _is_at(backend, published, member_name(name, i)))
            elif self.apart:
                whose = (number,) if number < members else ()
            index = published.indices[store.backend_key(name, backend.url)]
            self.all.append(Server(backend, index, whose))
        self._of = [[one for one in self.all if member in one.members] for member in every]

    def of(self, member: int) -> list[Server]:
        """The servers that a member is asked at."""
        return self._of[member] if member < len(self._of) else []


def _is_at(backend: Backend, published: Published, member: str) -> bool:
    for server in published.found.get(member, ()):
        host = f"[{server.address}]" if ":" in server.address else server.address
        if backend.url == f"http://{host}:{server.port}":
            return True
    return False
