"""How much of what was sent to a client has reached it: one question to the kernel, by netlink
(sock_diag(7)).

The server host buffers without bound and tells nobody, so what paces a stream is the client's own
acknowledgements: ``bytes_acked`` of TCP_INFO, and what the kernel still holds. The host does not give us the
socket either, so it is found by its addresses. A question is one ``send`` and one ``recv`` on a netlink
socket, needs no privilege, and is answered before ``send`` returns.

The server's address as the host reports it is the listener's, which may be a wildcard. The connection's own
is then guessed: the one that worked for this client before, ones that worked for others, the client's own (a
local client), the one the routing table would use towards it; and if all of these are wrong, the kernel's
connections with those two ports are listed, once for a client.

Layouts (native byte order but for ports and addresses), from linux/netlink.h, inet_diag.h and tcp.h::

    request   nlmsghdr 16: u32 length, u16 type 20, u16 flags, u32 sequence, u32 port
              inet_diag_req_v2 56: u8 family, u8 protocol, u8 wanted extensions, u8, u32 states,
                be16 source port, be16 destination port, 16 source, 16 destination, u32 interface, 2 u32
                cookie
    reply     nlmsghdr 16
              inet_diag_msg 72: u8 family, u8 state, u8, u8, the same 48 bytes of addresses as above,
                u32 expires, u32 receive queue, u32 write queue, u32 uid, u32 inode
              attributes: u16 length, u16 type, data, padded to 4; type 2 is tcp_info, bytes_acked its u64 at
              120
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLM_F_DUMP = 0x300
_NLMSG_DONE = 3
_NLMSG_ERROR = 2
_INET_DIAG_INFO = 2
_INET_DIAG_REQ_BYTECODE = 1
_BC_S_GE, _BC_S_LE, _BC_D_GE, _BC_D_LE = 2, 3, 4, 5
_TCP_LISTEN = 10
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8
_REPLY_BYTES = 16 + 72
_BYTES_ACKED_AT = 120

_HEADER = struct.Struct("=IHHII")
_ASK = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_STATE_AND_PORTS = struct.Struct("!BBBBHH")
_WRITE_QUEUE = struct.Struct("=I")
_COUNTER = struct.Struct("=Q")
_SEQUENCE = struct.Struct("=I")

#: clients whose question is kept ready; past that all are forgotten, and asked about from the beginning
_CLIENTS_KEPT = 8192
#: a listing looks at every connection of the machine, which takes milliseconds: after so many that found
#: nothing, there is none until a connection is found without
_FRUITLESS_LISTINGS = 16
#: local addresses tried because they worked for somebody
_ADDRESSES_KEPT = 4


@dataclass(frozen=True, slots=True)
class Acked:
    """``bytes_acked``: bytes the client has acknowledged since the connection began, ours or not.
    ``wqueue``: bytes the kernel holds that it has not, sent or unsent.
    """

    bytes_acked: int
    wqueue: int


class AckMeter:
    """A worker's line to the kernel, opened with the first question and for this process alone (not over a
    fork).
    """

    def __init__(self, open_line: Callable[[], socket.socket] | None = None) -> None:
        self._open_line = open_line or _open_line
        self._socket: socket.socket | None = None
        self._denied = False
        self._sequence = 0
        self._info_at = _REPLY_BYTES
        # the question that found a client's connection
        self._questions: dict[tuple[str, str], bytes] = {}
        self._good: list[bytes] = []
        self._fruitless = 0
        self._reply = bytearray(4096)

    def acked(self, client: str, server: str) -> Acked | None:
        """What is known of the TCP connection from ``client`` (``ip:port``) to a listener on ``server``.

        None where the kernel cannot tell: no TCP, no such connection (any more), netlink denied. Never
        raises.
        """
        if self._denied:
            return None
        key = (client, server)
        question = self._questions.get(key)
        if question is not None:
            found = self._ask(question)
            if found is not None:
                return found
        return self._find(key)

    def forget(self, client: str, server: str) -> None:
        """The connection has ended: its question need not be kept."""
        self._questions.pop((client, server), None)

    def close(self) -> None:
        """Close the netlink socket; the next question opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # ---- finding a connection

    def _find(self, key: tuple[str, str]) -> Acked | None:
        client, server = _endpoint(key[0]), _endpoint(key[1])
        if client is None or server is None:
            return None
        address, port = client
        for local in self._candidates(address, server[0]):
            question = _question(local, server[1], address, port)
            found = self._ask(question)
            if found is not None:
                self._remember(key, local, question)
                return found
            if self._denied:
                return None
        if any(server[0]) or self._fruitless >= _FRUITLESS_LISTINGS:
            return None
        listed = self._list(address, port, server[1])
        if listed is not None:
            question = _question(listed, server[1], address, port)
            found = self._ask(question)
            if found is not None:
                self._remember(key, listed, question)
                return found
        self._fruitless += 1
        return None

    def _remember(self, key: tuple[str, str], local: bytes, question: bytes) -> None:
        if len(self._questions) >= _CLIENTS_KEPT:
            self._questions.clear()
        self._questions[key] = question
        self._fruitless = 0
        if not self._good or self._good[0] != local:
            self._good = [local, *(good for good in self._good if good != local)][:_ADDRESSES_KEPT]

    def _candidates(self, client: bytes, listener: bytes) -> Iterator[bytes]:
        """Addresses the client may have connected to, the likeliest first."""
        if any(listener):
            yield listener
            return
        tried = set()
        for address in (*self._good, client):
            if len(address) == len(client) and address not in tried:
                tried.add(address)
                yield address
        routed = _routed(client)
        if routed is not None and routed not in tried:
            yield routed

    # ---- talking to the kernel

    def _send(self, question: bytes) -> socket.socket | None:
        line = self._socket
        try:
            if line is None:
                line = self._open_line()
                self._socket = line
            self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
            line.sendall(question[:8] + _SEQUENCE.pack(sequence) + question[12:])
        except OSError as error:
            # out of descriptors or memory passes; anything else is this kernel's or this sandbox's last word
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN):
                self._denied = True
            self.close()
            return None
        return line

    def _ask(self, question: bytes) -> Acked | None:
        line = self._send(question)
        if line is None:
            return None
        reply = self._reply
        try:
            while True:
                received = line.recv_into(reply)
                if received >= 16 and _SEQUENCE.unpack_from(reply, 8)[0] == self._sequence:
                    break  # anything else answers a question that was given up
        except OSError:
            self.close()
            return None
        return self._read(reply, received, question)

    def _read(self, reply: bytearray, received: int, question: bytes) -> Acked | None:
        """The numbers of a reply; None when it is an error, or tells of another socket than was asked for."""
        length, kind, _, _, _ = _HEADER.unpack_from(reply)
        if kind != _SOCK_DIAG_BY_FAMILY or not _REPLY_BYTES <= length <= received:
            return None
        # where no connection matches, the kernel answers with the listener
        if reply[17] == _TCP_LISTEN or reply[20:24] != question[24:28]:
            return None
        at = self._info_at
        if at + 4 > length or _ATTRIBUTE.unpack_from(reply, at)[1] != _INET_DIAG_INFO:
            for place in _attributes(reply, length):
                if _ATTRIBUTE.unpack_from(reply, place)[1] == _INET_DIAG_INFO:
                    self._info_at = at = place
                    break
            else:
                return None
        if _ATTRIBUTE.unpack_from(reply, at)[0] < 4 + _BYTES_ACKED_AT + 8:
            return None
        return Acked(
            _COUNTER.unpack_from(reply, at + 4 + _BYTES_ACKED_AT)[0],
            _WRITE_QUEUE.unpack_from(reply, 16 + 60)[0],
        )

    def _list(self, client: bytes, client_port: int, server_port: int) -> bytes | None:
        """The local address of the connection between these ports, from a filtered list of all
        connections.
        """
        families = (socket.AF_INET, socket.AF_INET6) if len(client) == 4 else (socket.AF_INET6,)
        for family in families:
            line = self._send(_listing(family, client_port, server_port))
            if line is None:
                return None
            try:
                for message in self._messages(line):
                    _, state, _, _, source, destination = _STATE_AND_PORTS.unpack_from(message)
                    if (
                        (source, destination) == (server_port, client_port)
                        and state != _TCP_LISTEN
                        and _plain(message[24:40], message[0]) == client
                    ):
                        return _plain(message[8:24], message[0])
            except OSError:
                return None
            finally:
                self.close()  # what is left of the list goes with the socket
        return None

    def _messages(self, line: socket.socket) -> Iterator[bytes]:
        """The messages of a list, without their netlink headers."""
        while True:
            replies = line.recv(1 << 16)
            at = 0
            while at + 16 <= len(replies):
                length, kind, _, sequence, _ = _HEADER.unpack_from(replies, at)
                if kind != _SOCK_DIAG_BY_FAMILY or length < _REPLY_BYTES or sequence != self._sequence:
                    return
                yield replies[at + 16 : at + length]
                at += (length + 3) & ~3


def _open_line() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    return socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)


def _endpoint(text: str) -> tuple[bytes, int] | None:
    """``ip:port`` as packed address (IPv4 where it is one mapped into IPv6) and port; None when it is
    neither.
    """
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
        number = int(port)
    except ValueError:
        return None
    if not 0 < number < 65536:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).packed, number


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _plain(address: bytes, family: int) -> bytes:
    """A 16-byte address field as the address it holds, IPv4 where it is one mapped into IPv6."""
    if family == socket.AF_INET:
        return address[:4]
    return address[12:] if address[:12] == b"\0" * 10 + b"\xff\xff" else address


def _question(local: bytes, local_port: int, client: bytes, client_port: int) -> bytes:
    """The request for exactly one connection, its sequence number still zero."""
    return (
        _HEADER.pack(72, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
        + _ASK.pack(_family(client), socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 0, _ALL_STATES)
        + struct.pack("!HH16s16s4x", local_port, client_port, local, client)
        + _NO_COOKIE
    )


def _listing(family: int, client_port: int, server_port: int) -> bytes:
    """The request for all connections between two ports. A filter is a list of jumps: each test goes on by 8
    bytes when it holds, and past the end (which rejects) when it does not; the port to test follows it as an
    operation.
    """
    tests = (
        (_BC_S_GE, server_port),
        (_BC_S_LE, server_port),
        (_BC_D_GE, client_port),
        (_BC_D_LE, client_port),
    )
    code = b"".join(
        struct.pack("=BBHBBH", test, 8, 8 * (len(tests) - index) + 4, 0, 0, port)
        for index, (test, port) in enumerate(tests)
    )
    length = 72 + 4 + len(code)
    return (
        _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 0, 0)
        + _ASK.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES & ~(1 << _TCP_LISTEN))
        + bytes(48)
        + _ATTRIBUTE.pack(4 + len(code), _INET_DIAG_REQ_BYTECODE)
        + code
    )


def _attributes(reply: bytearray, length: int) -> Iterator[int]:
    at = _REPLY_BYTES
    while at + 4 <= length:
        yield at
        size = _ATTRIBUTE.unpack_from(reply, at)[0]
        if size < 4:
            return
        at += (size + 3) & ~3


def _routed(client: bytes) -> bytes | None:
    """The address this machine would speak to the client from. Nothing is sent."""
    try:
        with socket.socket(_family(client), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.connect((str(ipaddress.ip_address(client)), 9))
            return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]).packed
    except (OSError, ValueError):
        return None
