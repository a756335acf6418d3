"""Reading a configuration: file or text, to a checked `Config`, or one line that says why not."""

import errno
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from .check import Machine, check
from .faults import ConfigError
from .model import Backend
from .redis import RedisServer, RedisTls
from .shape import shape
from .source import MAX_FILE_BYTES, parse
from .structs import Config, Tls

Server = TypeVar("Server", bound=RedisServer)


def load(
    source: Path | str,
    environ: Mapping[str, str],
    *,
    machine: Machine | None = None,
    name: str | None = None,
    adjust: Callable[[Config], Config] = lambda config: config,
) -> Config:
    """The configuration in `source`: a Path is a file, a str is the YAML text itself.

    `environ` answers `${NAME}` and says whether the variables that hold secrets are set; their values are not
    read. `machine` is what the configuration is checked against, this one when absent. `name` is what errors
    call the source. `adjust` makes of what is written what is meant, before it is checked. Relative
    paths of certificates and keys in a file are taken from its folder. Raises ConfigError, whose text is one line.
    """
    called = name or (str(source) if isinstance(source, Path) else "configuration")
    text = read_text(called, source) if isinstance(source, Path) else source
    config = shape(called, parse(called, text), environ)
    if isinstance(source, Path):
        config = _rooted(config, source.absolute().parent)
    config = adjust(config)
    check(called, config, environ, machine or Machine.here())
    return config


def _rooted(config: Config, folder: Path) -> Config:
    """`config` with the paths of certificates and keys made absolute; a process may run anywhere."""
    listen = config.listen
    if listen.tls is not None:
        tls = Tls(cert=str(folder / listen.tls.cert), key=str(folder / listen.tls.key))
        listen = replace(listen, tls=tls)
    models = {
        name: replace(model, backends=tuple(_trusting(backend, folder) for backend in model.backends))
        for name, model in config.models.items()
    }
    cache, limits, keys = config.cache, config.limits, config.keys
    if cache.l2 is not None:
        cache = replace(cache, l2=_reached(cache.l2, folder))
    if limits.redis is not None:
        limits = replace(limits, redis=_reached(limits.redis, folder))
    if keys is not None and keys.file is not None:
        keys = replace(keys, file=str(folder / keys.file))
    elif keys is not None and keys.redis is not None:
        keys = replace(keys, redis=_reached(keys.redis, folder))
    pools = config.pools
    if pools.redis is not None:
        pools = replace(pools, redis=_reached(pools.redis, folder))
    api = pools.kubernetes
    token_file, ca = (path and str(folder / path) for path in (api.token_file, api.ca))
    pools = replace(pools, kubernetes=replace(api, token_file=token_file, ca=ca))
    return replace(config, listen=listen, models=models, cache=cache, limits=limits, keys=keys, pools=pools)


def _reached(server: Server, folder: Path) -> Server:
    tls = server.tls
    if tls is None:
        return server
    files = {key: path and str(folder / path) for key, path in msgspec.structs.asdict(tls).items()}
    return replace(server, tls=RedisTls(**files))


def _trusting(backend: Backend, folder: Path) -> Backend:
    if backend.tls is None or backend.tls.ca is None:
        return backend
    return replace(backend, tls=replace(backend.tls, ca=str(folder / backend.tls.ca)))


def read_text(name: str, path: Path) -> str:
    """A file's text, if it is a regular file of bounded size; `name` is what errors call it. Raises ConfigError."""
    try:
        # Opening a FIFO waits for its writer, and a device may never end: neither may hold up a reload.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(name, "", "not a regular file", "write the configuration to one")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as fault:
        fix = "check the path" if fault.errno == errno.ENOENT else "check the path and its rights"
        raise ConfigError(name, "", f"cannot be read: {fault.strerror}", fix) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        if len(data) > MAX_FILE_BYTES:  # cut in the middle of a character
            return data.decode("utf-8", "replace")
        raise ConfigError(name, f"byte {fault.start}", "not UTF-8", "save the file as UTF-8 text") from None


def schema() -> dict[str, Any]:
    """The configuration's JSON Schema (draft 2020-12), made from the Structs."""
    made = msgspec.json.schema(Config)
    for struct in made["$defs"].values():
        for prop in struct.get("properties", {}).values():
            if prop.get("type") == "integer" and "pattern" in prop:
                prop["type"] = ["integer", "string"]  # a size: bytes, or text with a unit
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Penstock configuration",
        **made,
    }
