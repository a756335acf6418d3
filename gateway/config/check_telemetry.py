"""What is wrong with where requests are told of: the access log's path, and the collector of traces."""

import os
from collections.abc import Iterator, Mapping

from .addresses import parts_of
from .structs import STDERR, Config


def telemetry_faults(
    config: Config, environ: Mapping[str, str], otel: bool
) -> Iterator[tuple[str, str, str]]:
    """Path, fault and likely fix of each; ``otel``: whether the extra is installed."""
    access, telemetry = config.log.access, config.telemetry
    if access is not None and access.path != STDERR:
        folder = os.path.dirname(access.path) or "."
        if os.path.isdir(access.path):
            yield "$.log.access.path", f"{access.path} is a folder", "add a file's name"
        elif not os.path.isdir(folder):
            yield "$.log.access.path", f"there is no folder {folder}", "create it, or use another path"
    if telemetry is None:
        return
    parts, port = parts_of(telemetry.otlp_endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        yield "$.telemetry.otlp_endpoint", "not the URL of a collector", "write http://collector:4318"
    if "@" in parts.netloc or parts.query or parts.fragment:
        yield (
            "$.telemetry.otlp_endpoint",
            "a user, a password or a query in a URL",
            "put secrets in a variable and name it in `headers_env`",
        )
    if parts.path.rstrip("/").endswith("/v1/traces"):
        yield "$.telemetry.otlp_endpoint", "ends in /v1/traces, which is added to it", "remove /v1/traces"
    variable = telemetry.headers_env
    if variable is not None and not environ.get(variable):
        yield (
            "$.telemetry.headers_env",
            f"environment variable {variable} is not set",
            "set it before starting",
        )
    if not otel:
        yield "$.telemetry", "OpenTelemetry is not installed", "pip install 'penstock[otel]', or remove it"
