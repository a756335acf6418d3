"""The configuration is read, checked and handed on; what is wrong with a file is said in one line."""

import os
import re
import sys
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.config import (
    GIB,
    MAX_BACKENDS,
    MIB,
    Config,
    ConfigError,
    Machine,
    Published,
    from_snapshot,
    load,
    pack,
    snapshot,
    unpack,
)
from penstock.gateway.config.check import descriptors
from penstock.workers.cli import main

from ..support.scripted import certificate

ROOMY = Machine(cores=frozenset(range(8)), max_descriptors=1_000_000)
MODEL = "models:\n  m: {backends: [{url: http://h:1}]}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def read(text, environ=None, machine=ROOMY):
    return load(text, environ or {}, machine=machine, name="p.yaml")


def refusal(text, environ=None, machine=ROOMY):
    with pytest.raises(ConfigError) as caught:
        read(text, environ, machine)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("p.yaml: ")
    return line.removeprefix("p.yaml: ")


def test_a_model_with_one_backend_is_enough_and_the_rest_has_defaults():
    config = read(MODEL)
    assert config.models["m"].backends[0].url == "http://h:1"
    assert (config.listen.port, config.admin.port, config.workers.count) == (8080, 9090, "auto")
    assert (config.limits.max_body, config.limits.max_buffered) == (10 * MIB, 2 * GIB)
    assert config.models["m"].timeouts.first_byte_s == 120


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("512B", 512), ("1KiB", 1024), ("10 MiB", 10 * MIB), ("0.5GiB", GIB // 2), ('"7"', None)],
)
def test_a_size_is_a_number_of_bytes_or_a_number_with_a_unit(text, size):
    file = MODEL + f"limits: {{max_body: {text}}}\n"
    if size is None:
        assert "not a size" in refusal(file)
    else:
        assert read(file).limits.max_body == size


@pytest.mark.parametrize("word", ["off", "'off'", '"off"'])
def test_the_cache_is_off_whether_or_not_the_word_stands_in_quotes(word):
    cache = f"cache: {{mode: {word}}}"
    config = read(MODEL.replace("backends", f"{cache}, backends", 1) + cache)
    assert config.cache.mode == "off"
    assert config.models["m"].cache is not None
    assert config.models["m"].cache.mode == "off"


def test_environment_variables_are_replaced_where_that_is_declared():
    text = "models:\n  m: {backends: [{url: 'http://${HOST}:${PORT:-8000}'}]}\n"
    assert read(text, {"HOST": "gpu"}).models["m"].backends[0].url == "http://gpu:8000"
    assert read(text, {"HOST": "gpu", "PORT": "9"}).models["m"].backends[0].url == "http://gpu:9"


def test_an_alias_of_yaml_may_share_settings_between_models():
    text = (
        "models:\n  a: {timeouts: &t {connect_s: 1}, backends: [{url: http://a}]}\n"
        "  b: {timeouts: *t, backends: [{url: http://b}]}\n"
    )
    config = read(text)
    assert config.models["b"].timeouts.connect_s == 1


# What is written, and the refusal: the place, what is wrong there, the likely fix.
BROKEN = [
    (
        "models: {m: {backends: [{url: 'http://[::1:8000'}]}}",
        "$.models.m.backends[0].url: no host, or no such port; write http://host:8000",
    ),
    (MODEL + "store: {url: 'redis://[::1:6379'}", "$.store.url: not the URL of a Redis; write redis://host"),
    (
        MODEL + "telemetry: {otlp_endpoint: 'http://[::1:4318'}",
        "$.telemetry.otlp_endpoint: not the URL of a collector",
    ),
    (
        "models: {m: {pool: {provider: docker, image: i, sleep_level: 2}}}",
        "$.models.m.pool.sleep_level: of no use without `sleep_after_s`; give that, or remove this",
    ),
    (
        "models: {m: {pool: {provider: docker, image: i, gpus: 2}}}\npools: {gpus: [{memory: 80GiB}]}",
        "$.models.m.pool.gpus: 2 for each server, and this node has 1; lower it, or correct `pools.gpus`",
    ),
    (
        MODEL + "log: {access: {path: /none/of/these/access.jsonl}}",
        "$.log.access.path: there is no folder /none/of/these; create it",
    ),
    (MODEL + "log: {access: {path: /tmp}}", "$.log.access.path: /tmp is a folder; add a file's name"),
    (MODEL + "log: {access: {sample: 2}}", "$.log.access.sample: 2"),
    (MODEL + "telemetry: {sample_ratio: 1}", "$.telemetry"),
    (
        MODEL + "telemetry: {otlp_endpoint: collector:4318}",
        "$.telemetry.otlp_endpoint: not the URL of a collector; write http://collector:4318",
    ),
    (
        MODEL + "telemetry: {otlp_endpoint: 'http://collector:4318/v1/traces'}",
        "$.telemetry.otlp_endpoint: ends in /v1/traces, which is added to it; remove /v1/traces",
    ),
    (
        MODEL + "telemetry: {otlp_endpoint: 'http://a:b@collector:4318'}",
        "$.telemetry.otlp_endpoint: a user, a password or a query in a URL; put secrets in a variable",
    ),
    (
        MODEL + "telemetry: {otlp_endpoint: 'http://collector:4318', headers_env: NOT_SET_ANYWHERE}",
        "$.telemetry.headers_env: environment variable NOT_SET_ANYWHERE is not set; set it",
    ),
    (
        MODEL + "cache: {l1: {size: 1MiB}}",
        "$.cache.l1.size: holds fewer than 8 answers of `max_entry`; raise it, or lower",
    ),
    (MODEL + "cache: {l1: {size: 0, keep: true}}", "$.cache.l1.keep: there is nothing to keep"),
    (MODEL + "cache: {l1: {max_entry: 4MiB}}", "$.cache.l1.max_entry: 4194304 is out of bounds"),
    (MODEL + "cache: {mode: some}", "$.cache.mode: 'some' is not one of the choices; the choices are"),
    (MODEL + "cache: {l2: {}}", "$.cache.l2: `url` is missing"),
    (MODEL + "store: {}", "$.store: `url` is missing; add `url:` here"),
    (MODEL + "store: {url: http://r}", "$.store.url: not the URL of a Redis"),
    (
        MODEL + "store: {url: redis://r, refresh_s: 0}",
        "$.store.refresh_s: 0 is out of bounds; write more than 0",
    ),
    (
        MODEL + "store: {url: redis://r, password_env: NOPE}",
        "$.store.password_env: environment variable NOPE is",
    ),
    (MODEL + "cache: {l2: {url: http://r}}", "$.cache.l2.url: not the URL of a Redis"),
    (MODEL + "cache: {l2: {url: 'redis://:pw@r'}}", "$.cache.l2.url: a user, a password or a query"),
    (MODEL + "cache: {l2: {url: redis://r/x}}", "$.cache.l2.url: x is not a database's number"),
    (
        MODEL + "cache: {l2: {url: redis://r/1, topology: cluster}}",
        "$.cache.l2.url: a cluster has database 0 alone",
    ),
    (MODEL + "cache: {l2: {url: redis://r, topology: sentinel}}", "$.cache.l2: `nodes` is missing"),
    (MODEL + "cache: {l2: {url: redis://r, nodes: ['a:1']}}", "$.cache.l2.nodes: of no use with one server"),
    (
        MODEL + "cache: {l2: {url: redis://r, topology: cluster, nodes: [a]}}",
        "$.cache.l2.nodes[0]: a is not host:port",
    ),
    (
        MODEL + "cache: {l2: {url: redis://r, password_env: NOPE}}",
        "$.cache.l2.password_env: environment variable NOPE is not set",
    ),
    (MODEL + "cache: {l2: {url: redis://r, tls: {}}}", "$.cache.l2.tls: the URL is not rediss"),
    (
        MODEL + "cache: {l2: {url: rediss://r, tls: {ca: /nowhere.pem}}}",
        "$.cache.l2.tls.ca: cannot read /nowhere.pem",
    ),
    (
        MODEL + "cache: {l2: {url: rediss://r, tls: {cert: /dev/null}}}",
        "$.cache.l2.tls: `cert` and `key` need each other",
    ),
    ("", "$: the file is empty; start from penstock.example.yaml"),
    ("just words", "$: not a mapping of keys to values; write `models:` at the top"),
    ("models: [1, 2", "line 2, column 1: not YAML: did not find expected ',' or ']'; check quotes"),
    (
        "models:\n\t- x",
        "line 2, column 1: not YAML: found character that cannot start any token; indent with spaces, not tabs",
    ),
    ("a: `x`", "line 1, column 4: not YAML: found character that cannot start any token; check quotes"),
    ("a: \x00", "$: not YAML: unacceptable character #x0000"),
    (BOMB, "$.f: more than 200000 values once aliases are unfolded; write the values out"),
    ("a: &a {b: *a}", "$.a.b: an alias that contains itself; write the value out"),
    ("a: " + "[" * 40 + "]" * 40, "line 1: nested too deeply; use at most 32 levels"),
    ("x: " + "y" * (1 << 20), "$: larger than 1 MiB; "),
    (MODEL + "log: !!python/object:os.system ls", "$: could not determine a constructor for the tag"),
    (MODEL + MODEL, "$.models: given twice (again in line 3); keep one of them"),
    ("models:\n  yes: {}", '$.models.yes: a key that is not text; quote it: "yes"'),
    ("{}", "$: `models` is missing; add `models:` here"),
    ("models: {}", "$.models: a mapping that must not be empty; write its keys below it, indented"),
    ("models: []", "$.models: expected a mapping, got a list; write its keys below it, indented"),
    ("models:", "$.models: nothing follows; indent its keys below it"),
    ("models:\n  m:", "$.models.m: expected a mapping, got nothing; write its keys below it, indented"),
    ("models:\n  m: {}", "$.models.m: `backends` is missing; add `backends:` here"),
    (
        "models:\n  m: {backends: [{url: 'http://10.0.0.1:1', discover: dns}]}",
        "$.models.m.backends[0].discover: an address or a path is no name; remove it",
    ),
    (
        MODEL + "discovery: {nameservers: ['10.0.0.2', '[::1]:5353', dns.lan]}",
        "$.discovery.nameservers[2]: dns.lan is no address; write 10.0.0.2 or 10.0.0.2:53",
    ),
    ("models:\n  m: {backends: []}", "$.models.m: `backends` is missing; add `backends:` here, or a `pool`"),
    ("models:\n  m: {backends: http://h}", "$.models.m.backends: expected a list, got text; write a list"),
    (
        "models:\n  m: {backends: [http://h]}",
        "$.models.m.backends[0]: expected a mapping, got text; write its keys",
    ),
    ("models:\n  m: {backends: [{}]}", "$.models.m.backends[0]: `url` is missing; add `url:` here"),
    (
        "models:\n  q2.5: {backends: [{url: http://h, weight: 0}]}",
        "$.models.q2.5.backends[0].weight: 0 is out of",
    ),
    (MODEL + "listn: {}", "$.listn: unknown key; did you mean `listen`?"),
    (MODEL + "port: 1", "$.port: unknown key; `port` belongs under `listen` or `admin`"),
    (MODEL + "zzz: 1", "$.zzz: unknown key; known here: models, listen, admin"),
    (
        MODEL + "listen: {read_timeout: 1}",
        "$.listen.read_timeout: unknown key; did you mean `read_timeout_s`?",
    ),
    (MODEL + "listen: {port: '80'}", "$.listen.port: expected a whole number, got text; write a number"),
    (MODEL + "listen: {port: 70000}", "$.listen.port: 70000 is out of bounds; write at most 65535"),
    (
        MODEL + "listen: {port: '${PORT}'}",
        "$.listen.port: `${...}` is not replaced here; only hosts, paths and URLs",
    ),
    (
        MODEL + "listen: {host: '${HOST}'}",
        "$.listen.host: environment variable HOST is not set; set it, or write",
    ),
    (MODEL + "listen: {host: '${A B}'}", "$.listen.host: `${A B}` names no variable; write ${NAME}"),
    (MODEL + "listen: {http: 1}", '$.listen.http: expected text, got a whole number; put it in quotes: "1"'),
    (
        "models:\n  m: {pool: {provider: process, command: [x], env: {B: b, A: 1}}}",
        '$.models.m.pool.env.A: expected text, got a whole number; put it in quotes: "1"',
    ),
    (
        "models:\n  m: {pool: {provider: process, command: [x, {port}]}}",
        '$.models.m.pool.command[1]: expected text, got a mapping; put it in quotes: "{port}"',
    ),
    (MODEL + "listen: {http: '2'}", "$.listen.http: '2' is not one of the choices; the choices are 1, auto"),
    (
        MODEL + "listen: {read_timeout_s: .inf}",
        "$.listen.read_timeout_s: inf is not a finite number; write a number",
    ),
    (
        MODEL + "listen: {uds: /nowhere/at/all.sock}",
        "$.listen.uds: there is no folder /nowhere/at; create it",
    ),
    (MODEL + f"listen: {{uds: /tmp/{'x' * 110}}}", "$.listen.uds: longer than a socket's path may be"),
    (
        MODEL + "listen: {tls: {cert: /nowhere.crt, key: /k}}",
        "$.listen.tls.cert: cannot read /nowhere.crt: No such",
    ),
    (MODEL + "listen: {port: 9090}", "$.admin.port: 9090 is the API port too; choose another"),
    (
        MODEL + "admin: {host: 0.0.0.0}",
        "$.admin.host: 0.0.0.0 can be reached from outside; set `admin.key_env`",
    ),
    (
        MODEL + "admin: {on_api_port: true}",
        "$.admin.on_api_port: would be open to every client; set `admin.key_env`",
    ),
    (
        MODEL + "admin: {on_api_port: maybe}",
        "$.admin.on_api_port: expected true or false, got text; write true",
    ),
    (
        MODEL + "cache: {l1: {keep: on}}",
        "$.cache.l1.keep: expected true or false, got text; write true or false",
    ),
    (MODEL + "admin: {key_env: KEY}", "$.admin.key_env: environment variable KEY is not set; set it before"),
    (MODEL + "admin: {key_env: a-b}", "$.admin.key_env: 'a-b' has the wrong form; it must match"),
    (MODEL + "log: {level: info}", "$.log.level: 'info' is not one of the choices; did you mean `INFO`?"),
    (
        MODEL + "workers: {count: atuo}",
        "$.workers.count: 'atuo' is not one of the choices; did you mean `auto`?",
    ),
    (MODEL + "workers: {cores: [0, 99]}", "$.workers.cores: core 99 cannot be used here; usable: 0, 1, 2"),
    (MODEL + "workers: {cores: [1, 1]}", "$.workers.cores: a core is named twice; name each once"),
    (MODEL + "workers: {cores: 0}", "$.workers.cores: expected a list, got a whole number; write a list"),
    (
        MODEL + "workers: {cores: [0], count: 2}",
        "$.workers.count: 2 workers for 1 cores; lower it, or name more",
    ),
    (
        MODEL + "workers: {drain_timeout_s: 1}",
        "$.workers.drain_timeout_s: 1 s is over before `drain_delay_s` is",
    ),
    (
        MODEL + "limits: {max_body: 10MB}",
        "$.limits.max_body: '10MB' is not a size; write bytes, or as in 10MiB",
    ),
    (MODEL + "limits: {max_body: 3GiB}", "$.limits.max_body: larger than `limits.max_buffered`; lower it"),
    (
        MODEL + "upstream: {connections: {min_idle: 60}}",
        "$.upstream.connections.min_idle: larger than `max_idle`",
    ),
    (
        MODEL + "upstream: {http2: {min_connections: 20, max_connections: 10}}",
        "$.upstream.http2.min_connections: larger than `max_connections`",
    ),
    (
        "models:\n  m: {fallbacks: [m], backends: [{url: http://h}]}",
        "$.models.m.fallbacks[0]: m is the model itself; remove it",
    ),
    (
        "models:\n  m: {fallbacks: [n, n], backends: [{url: http://h}]}\n  n: {backends: [{url: http://i}]}",
        "$.models.m.fallbacks[1]: n is named twice; remove it",
    ),
    (MODEL + "health: {path: health}", "$.health.path: 'health' has the wrong form; begin it with /"),
    (MODEL + "health: {path: /a b}", "$.health.path: '/a b' has the wrong form; it must match"),
    (
        "models:\n  m: {version: 2026-01-01, backends: [{url: http://h}]}",
        "$.models.m.version: expected text, got a date",
    ),
    (
        "models:\n  m: {version: 1, backends: [{url: http://h}]}",
        "$.models.m.version: expected text, got a whole number",
    ),
    (
        "models:\n  m: {backends: [{url: h:80}]}",
        "$.models.m.backends[0].url: not http, https or unix; write http://h:80",
    ),
    (
        "models:\n  m: {backends: [{url: http://h/v1}]}",
        "$.models.m.backends[0].url: ends in /v1, which every request's",
    ),
    (
        "models:\n  m: {backends: [{url: http://}]}",
        "$.models.m.backends[0].url: no host, or no such port; write",
    ),
    (
        "models:\n  m: {backends: [{url: http://h:99999}]}",
        "$.models.m.backends[0].url: no host, or no such port; write",
    ),
    (
        "models:\n  m: {backends: [{url: http://u:p@h}]}",
        "$.models.m.backends[0].url: a user or password in a URL; put",
    ),
    (
        "models:\n  m: {backends: [{url: http://h?a=b}]}",
        "$.models.m.backends[0].url: a query in a backend's URL; end it",
    ),
    (
        "models:\n  m: {backends: [{url: 'http://h x'}]}",
        "$.models.m.backends[0].url: a space or a character that is",
    ),
    (
        "models:\n  m: {backends: [{url: unix:run}]}",
        "$.models.m.backends[0].url: not a socket's path; write unix:///",
    ),
    (
        "models:\n  m: {backends: [{url: http://h}, {url: http://h/}]}",
        "$.models.m.backends[1].url: http://h is given",
    ),
    (
        "models:\n  m: {backends: [{url: http://h, tls: {}}]}",
        "$.models.m.backends[0].tls: the URL is not https; write",
    ),
    (
        "models:\n  m: {backends: [{url: https://h, tls: {ca: /no}}]}",
        "$.models.m.backends[0].tls.ca: cannot read /no",
    ),
    (
        "models:\n  m: {backends: [{url: http://h, api_key_env: K}]}",
        "$.models.m.backends[0].api_key_env: environment",
    ),
    (
        "models:\n  m: {aliases: [m], backends: [{url: http://h}]}",
        "$.models.m.aliases[0]: m is the name of a model",
    ),
    (
        "models:\n  m: {aliases: [x, x], backends: [{url: http://h}]}",
        "$.models.m.aliases[1]: x is already an alias of m",
    ),
    (
        'models:\n  m: {aliases: ["a\\nb"], backends: [{url: http://h}]}',
        "$.models.m.aliases[0]: not a model's name",
    ),
    (
        'models:\n  m: {max_queue: 0, pool: {provider: process, command: [vllm, "{port}"]}}',
        "$.models.m.max_queue: nobody could wait for the pool's servers to wake; raise it",
    ),
]


@pytest.mark.parametrize(("text", "said"), BROKEN, ids=[said[:60] for _, said in BROKEN])
def test_a_broken_file_is_refused_with_the_place_the_fault_and_the_likely_fix(text, said):
    line = refusal(text)
    assert line.startswith(said)
    assert "; " in line


def test_the_command_says_of_each_broken_file_in_one_line_the_place_the_fault_and_the_likely_fix(
    tmp_path, capsys
):
    """`penstock config check`, as an operator meets it."""
    file = tmp_path / "p.yaml"
    broken = [
        (text, said) for text, said in BROKEN if "cores" not in text
    ]  # of this machine there may be others
    assert len(broken) >= 30
    for text, said in broken:
        file.write_text(text)
        assert main(["config", "check", str(file)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        line = printed.err.removeprefix(f"penstock: {file}: ").removesuffix("\n")
        assert "\n" not in line
        place, fault, fix = re.fullmatch(r"(\$[^:]*|line \d+(?:, column \d+)?): (.+?); (.+)", line).groups()
        assert f"{place}: {fault}; {fix}".startswith(said), text
    file.write_text(MODEL)
    assert main(["config", "check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: good\n"


def test_the_command_checks_a_document_with_the_file_it_is_laid_over(tmp_path, capsys):
    file, document = tmp_path / "p.yaml", tmp_path / "d.yaml"
    file.write_text("store: {url: redis://r}\n")
    document.write_text("# penstock config version 7\n" + MODEL)
    assert main(["config", "check", str(file), "--document", str(document)]) == 0
    assert capsys.readouterr().out == f"{file} with {document}: good\n"
    assert main(["config", "check", str(file)]) == 0
    assert "good, as far as it goes" in capsys.readouterr().out
    document.write_text(MODEL + "health: {fall: 0}\n")
    assert main(["config", "check", str(file), "--document", str(document)]) == 2
    assert (
        capsys.readouterr().err
        == f"penstock: {document}: $.health.fall: 0 is out of bounds; write at least 1\n"
    )
    file.write_text("store: {url: redis://u:p@r}\n")
    assert main(["config", "check", str(file)]) == 2
    assert "$.store.url: a user, a password or a query in a URL" in capsys.readouterr().err


def test_relative_paths_of_certificates_start_at_the_files_folder(tmp_path, monkeypatch):
    pair = certificate(tmp_path, "h").name
    file = tmp_path / "penstock.yaml"
    file.write_text(
        f"listen: {{tls: {{cert: {pair}, key: {tmp_path / pair}}}}}\n"
        f"models:\n  m: {{backends: [{{url: 'https://h', tls: {{ca: ./{pair}}}}}]}}\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load(file, {}, machine=ROOMY)
    paths = (config.listen.tls.cert, config.listen.tls.key, config.models["m"].backends[0].tls.ca)
    assert paths == (str(tmp_path / pair),) * 3


def test_certificate_and_key_that_do_not_belong_together_are_refused(tmp_path):
    (tmp_path / "cert").write_text("not a certificate")
    text = MODEL + f"listen: {{tls: {{cert: {tmp_path}/cert, key: {tmp_path}/cert}}}}\n"
    assert refusal(text).startswith("$.listen.tls: certificate and key do not load")


def test_traces_without_opentelemetry_are_refused_with_what_to_install(monkeypatch):
    text = MODEL + "telemetry: {otlp_endpoint: 'http://collector:4318'}"
    bare = Machine(cores=frozenset({0}), max_descriptors=1_000_000, otel=False)
    assert refusal(text, machine=bare).startswith(
        "$.telemetry: OpenTelemetry is not installed; pip install 'penstock[otel]'"
    )
    assert read(text).telemetry.sample_ratio == 1.0
    assert Machine.here().otel
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    assert not Machine.here().otel


def test_a_machine_with_too_few_descriptors_is_told_how_many_are_needed():
    config = read(MODEL)
    small = Machine(cores=frozenset({0}), max_descriptors=4096)
    said = refusal(MODEL, machine=small)
    assert f"a worker may need {descriptors(config)} file descriptors and gets 4096" in said
    assert "LimitNOFILE" in said


@pytest.mark.parametrize(
    ("url", "listen"),
    [
        ("http://127.0.0.1:8080", {}),
        ("http://localhost:8080/base", {}),
        ("http://0.0.0.0:8080", {}),
        ("http://[::1]:8080", {"host": "::"}),
        ("http://LOCALHOST:81", {"host": "127.0.0.1", "port": 81}),
        ("https://10.0.0.1", {"host": "10.0.0.1", "port": 443}),
        ("unix:///tmp/p.sock", {"uds": "/tmp/p.sock"}),
    ],
)
def test_a_backend_that_is_the_gateway_itself_is_refused(url, listen):
    text = yaml.safe_dump({"models": {"m": {"backends": [{"url": url}]}}, "listen": listen})
    assert refusal(text).startswith("$.models.m.backends[0].url: this is where Penstock itself listens")


@pytest.mark.parametrize(
    ("url", "listen"),
    [
        ("http://127.0.0.1:8000", {}),
        ("http://10.0.0.1:8080", {}),
        ("http://127.0.0.2:8080", {"host": "127.0.0.1"}),
        ("http://127.0.0.1", {"host": "10.0.0.1", "port": 80}),
        ("unix:///tmp/v.sock", {"uds": "/tmp/p.sock"}),
    ],
)
def test_a_neighbour_of_the_gateway_may_be_a_backend(url, listen):
    text = yaml.safe_dump({"models": {"m": {"backends": [{"url": url}]}}, "listen": listen})
    assert read(text).models["m"].backends[0].url == url


def test_more_backends_than_fit_are_refused():
    backends = ", ".join(f"{{url: http://h{i}}}" for i in range(MAX_BACKENDS + 1))
    assert "257 backends in all, at most 256" in refusal(f"models:\n  m: {{backends: [{backends}]}}\n")


def test_a_file_is_named_in_its_refusal(tmp_path):
    path = tmp_path / "penstock.yaml"
    path.write_text("models: {}")
    with pytest.raises(ConfigError, match=r"penstock\.yaml: \$\.models: a mapping that must not be empty"):
        load(path, {}, machine=ROOMY)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        ConfigError, match=r"none\.yaml: cannot be read: No such file or directory; check the path$"
    ):
        load(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=f"{path}: not a regular file; "):
            load(path, {})
    (tmp_path / "latin").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="byte 3: not UTF-8; save the file as UTF-8 text"):
        load(tmp_path / "latin", {})


def test_a_configuration_survives_its_journey_between_processes():
    config = read(MODEL + "workers: {cores: [1, 0]}\nlimits: {max_body: 1MiB}\n")
    assert from_snapshot(snapshot(config)) == config
    published = Published(config=config, indices={"m\nhttp://h:1": 0}, model_indices={"m": 0}, generation=7)
    assert unpack(pack(published)) == published


def test_a_snapshot_holds_the_names_of_secrets_and_not_the_secrets():
    text = (
        "models:\n  m: {backends: [{url: http://h, api_key_env: BACKEND_KEY}]}\nadmin: {key_env: ADMIN_KEY}\n"
    )
    config = read(text, {"BACKEND_KEY": "s3cret-b", "ADMIN_KEY": "s3cret-a"})
    data = snapshot(config)
    assert b"BACKEND_KEY" in data
    assert b"ADMIN_KEY" in data
    assert b"s3cret" not in data


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03"])
def test_a_damaged_snapshot_is_an_error_and_nothing_else(data):
    with pytest.raises(msgspec.DecodeError):
        from_snapshot(data)


words = st.sampled_from([*Config.__struct_fields__, "backends", "url", "m", "count", "port", "x"])
trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["10MiB", "${A}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@given(trees)
def test_any_tree_is_a_configuration_or_one_line(tree):
    try:
        read(yaml.safe_dump(tree))
    except ConfigError as fault:
        assert "\n" not in str(fault)


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_one_line(text):
    try:
        read(text)
    except ConfigError as fault:
        assert "\n" not in str(fault)
