"""A name server on loopback whose records a test changes as it goes, in a thread of the test's process."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer:
    """Answers over UDP. `records`: by name and type such as `("vllm.test.", "A")`; other names do not exist."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], Sequence[str]] = {}
        self.silent = False
        """Whether it answers nobody."""
        self.broken = False
        """Whether it answers SERVFAIL."""
        self.asked: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def serve(self) -> None:
        """Until an empty datagram comes."""
        while True:
            data, who = self._socket.recvfrom(65535)
            if not data:
                return
            query = dns.message.from_wire(data)
            self.asked[query.question[0].name.to_text()] += 1
            if not self.silent:
                self._socket.sendto(self._answer(query).to_wire(), who)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA | dns.flags.RA
        name = query.question[0].name.to_text()
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        records = self.records.get((name, kind), ())
        if self.broken:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif records:
            answer.answer.append(dns.rrset.from_text(name, 0, "IN", kind, *records))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer

    def stop(self) -> None:
        """End `serve`."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"", self._socket.getsockname())

    def close(self) -> None:
        self._socket.close()


@contextmanager
def name_server() -> Iterator[NameServer]:
    """A running one."""
    server = NameServer()
    thread = threading.Thread(target=server.serve, name="name-server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(10)
        server.close()
