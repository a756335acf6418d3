"""A server as a pool may have one, run as a program: `tiny_server.py PORT [what it does]`.

--exit N        end at once with this status, after a last line on standard error
--deaf          listen and answer nothing
--stubborn      ignore SIGTERM
--child         have a child in a session of its own, with another environment for --bare
--tell FILE     write pid, affinity and environment there, as JSON
--talk N        write so many KiB of lines
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import time

_SLEEPER = "import time; time.sleep(600)"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if "--deaf" in sys.argv:
            time.sleep(600)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _value(option: str) -> str | None:
    return sys.argv[sys.argv.index(option) + 1] if option in sys.argv else None


def main() -> int:
    if "--stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    status = _value("--exit")
    if status is not None:
        sys.stderr.write("something went before\nno weights were found\n\n")
        return int(status)
    if "--child" in sys.argv:
        subprocess.Popen([sys.executable, "-c", _SLEEPER], start_new_session=True)
        subprocess.Popen([sys.executable, "-c", _SLEEPER], env={"NOTHING": "1"})
    if "--far-child" in sys.argv:
        subprocess.Popen([sys.executable, "-c", _SLEEPER], env={"NOTHING": "1"}, start_new_session=True)
    talk = _value("--talk")
    if talk is not None:
        for _ in range(int(talk)):
            os.write(1, b"x" * 1023 + b"\n")
    http.server.ThreadingHTTPServer.allow_reuse_address = False
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler)
    told = _value("--tell")
    if told is not None:
        ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_IGN]
        with open(told + ".new", "w") as file:
            json.dump(
                {
                    "pid": os.getpid(),
                    "cores": sorted(os.sched_getaffinity(0)),
                    "ignored": ignored,
                    "environ": dict(os.environ),
                },
                file,
            )
        os.rename(told + ".new", told)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
