"""The fast backend: one nginx process that answers a fixed completion, and on a second port a fixed stream.

Strategy: ``return`` for the completion (the body is read and dropped, as an upstream that has its answer ready);
the echo module for the stream, one ``echo_flush`` after each event and nothing between them, so that every event is
its own chunk and its own write. Both ports answer what a gateway probes: /health, /v1/models, /metrics.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from . import payload
from .process import Child, RigError, answers, free_port

_CONFIG = """\
{modules}
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log warn;
worker_rlimit_nofile 65536;
events {{ worker_connections 30000; multi_accept on; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    default_type application/json;
    server {{
        listen 127.0.0.1:{plain} backlog=4096;
        location / {{ return 200 '{completion}'; }}
        {probes}
    }}
    server {{
        listen 127.0.0.1:{stream} backlog=4096;
        location / {{
            default_type text/event-stream;
{events}
        }}
        {probes}
    }}
}}
"""
_PROBES = """\
location = /health { return 200 ''; }
        location = /metrics { default_type text/plain; return 200 'vllm:num_requests_waiting 0\\n'; }
        location = /v1/models { return 200 '{"object":"list","data":[{"id":"bench","object":"model"}]}'; }\
"""
_MODULE = "ngx_http_echo_module.so"
_MODULE_FOLDERS = ("/usr/lib/nginx/modules", "/usr/share/nginx/modules", "/usr/lib64/nginx/modules")


class Nginx:
    """nginx on ``plain_port`` (a completion) and ``stream_port`` (33 events, flushed one by one)."""

    def __init__(self, folder: Path, cores: Sequence[int]) -> None:
        program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        if program is None:
            raise RigError("nginx is not installed: apt-get install nginx libnginx-mod-http-echo")
        self.program = program
        self.plain_port, self.stream_port = free_port(), free_port()
        module = next((p for f in _MODULE_FOLDERS if (p := Path(f, _MODULE)).exists()), None)
        if module is None:
            raise RigError("nginx lacks its echo module: apt-get install libnginx-mod-http-echo")
        events = "\n".join(
            f"            echo '{line}\\n'; echo_flush;"
            for line in (event.decode().strip() for event in payload.stream_events())
        )
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                modules=f"load_module {module};",
                folder=folder,
                plain=self.plain_port,
                stream=self.stream_port,
                completion=payload.completion().decode().replace("'", "\\'"),
                events=events,
                probes=_PROBES,
            )
        )
        self.child = Child(
            "nginx", [program, "-p", str(folder), "-c", str(config)], folder / "nginx.log", cores=cores
        )
        self.child.until(lambda: answers(self.plain_port) and answers(self.stream_port), "listening")

    def stop(self) -> None:
        """End it."""
        self.child.stop()
