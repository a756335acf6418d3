"""Reading a configuration: file or text, to a checked `Config`, or one line that says why not."""

import errno
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from .check import Machine, check, check_store
from .faults import ConfigError
from .layers import Layer, blamed, document, merged
from .model import Backend
from .redis import RedisServer, RedisTls
from .shape import shape
from .source import MAX_FILE_BYTES, parse
from .structs import STDERR, Config, Tls

Server = TypeVar("Server", bound=RedisServer)
_NOBODY: dict[str, Any] = {"-": {"backends": []}}


def load(
    source: Path | str,
    environ: Mapping[str, str],
    *,
    machine: Machine | None = None,
    name: str | None = None,
    adjust: Callable[[Config], Config] = lambda config: config,
    over: Layer | None = None,
    folder: Path | None = None,
) -> Config:
    """The configuration in `source`: a Path is a file, a str is the YAML text itself.

    `environ` answers `${NAME}` and says whether the variables that hold secrets are set; their values are not
    read. `machine` is what the configuration is checked against, this one when absent. `name` is what errors
    call the source. `adjust` makes of what is written what is meant, before it is checked. Relative
    paths of certificates and keys in a file are taken from its folder, those in a text from `folder`. `over` is a
    document that is laid over it. Raises ConfigError, whose text is one line.
    """
    called = name or (str(source) if isinstance(source, Path) else "configuration")
    text = read_text(called, source) if isinstance(source, Path) else source
    folder = source.absolute().parent if isinstance(source, Path) else folder
    file = parse(called, text)
    above = document(over) if over is not None else {}
    try:
        config = shape(called, merged(file, above), environ)
        if folder is not None:
            config = _rooted(config, folder)
        config = adjust(config)
        check(called, config, environ, machine or Machine.here())
    except ConfigError as fault:
        raise blamed(fault, file, above, over.name if over is not None else called) from None
    return config


def own_part(
    called: str,
    text: str,
    folder: Path,
    environ: Mapping[str, str],
    adjust: Callable[[Config], Config] = lambda config: config,
) -> Config:
    """What a file says of where its node listens, keeps its state, and finds the document to be laid over it.

    The rest of it is left out, and `models` are not what they will be. Raises ConfigError.
    """
    raw = parse(called, text)
    own: dict[str, Any] = {key: raw[key] for key in ("listen", "store") if key in raw}
    pools = raw.get("pools")
    if isinstance(pools, dict) and "state" in pools:
        own["pools"] = {"state": pools["state"]}
    config = adjust(_rooted(shape(called, {**own, "models": _NOBODY}, environ), folder))
    if config.store is not None:
        check_store(called, config.store, environ)
    return config


def names_models(called: str, text: str) -> bool:
    """Whether a file has models of its own. Raises ConfigError."""
    return "models" in parse(called, text)


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
    if config.store is not None:
        config = replace(config, store=_reached(config.store, folder))
    access = config.log.access
    if access is not None and access.path != STDERR:
        config = replace(
            config, log=replace(config.log, access=replace(access, path=str(folder / access.path)))
        )
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
