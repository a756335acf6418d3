"""A document laid over a file: what goes before what, whose fault it is, and what no document may have."""

import pytest

from penstock.gateway.config import ConfigError, Layer, Machine, load
from penstock.gateway.config.source import parse

ROOMY = Machine(cores=frozenset(range(8)), max_descriptors=1_000_000)
FILE = (
    "models:\n  own: {backends: [{url: http://own}]}\n"
    "cache: {mode: off, l1: {size: 64MiB, ttl_s: 5}}\nhealth: {rise: 2, fall: 3}\n"
)


def composed(document, file=FILE, environ=None):
    return load(
        file, environ or {}, machine=ROOMY, name="p.yaml", over=Layer(name="doc", text=document, version="7")
    )


def refusal(document, file=FILE, environ=None):
    with pytest.raises(ConfigError) as caught:
        composed(document, file, environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mappings_are_merged_and_the_document_goes_first():
    config = composed("cache: {l1: {ttl_s: 9}}\nhealth: {fall: 4}\nbreaker: {failures: 9}")
    assert (config.cache.mode, config.cache.l1.size, config.cache.l1.ttl_s) == ("off", 64 << 20, 9.0)
    assert (config.health.rise, config.health.fall, config.breaker.failures) == (2, 4, 9)
    assert set(config.models) == {"own"}


def test_models_of_a_document_replace_all_of_the_files():
    assert set(composed("models: {shared: {backends: [{url: http://s}]}}").models) == {"shared"}


def test_a_file_needs_no_models_where_a_document_has_them():
    document = "models: {m: {backends: [{url: http://m}]}}"
    assert set(composed(document, "node: {zone: a}").models) == {"m"}


def test_a_list_is_replaced_as_a_whole():
    config = composed(
        "discovery: {nameservers: [10.0.0.2]}", FILE + "discovery: {nameservers: [10.0.0.1, 10.0.0.3]}"
    )
    assert config.discovery.nameservers == ("10.0.0.2",)


def test_variables_are_replaced_in_a_document_as_in_a_file():
    document = "models: {m: {backends: [{url: 'http://${HOST}'}]}}"
    assert composed(document, environ={"HOST": "gpu"}).models["m"].backends[0].url == "http://gpu"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("health: {fall: 0}", "doc: $.health.fall: 0 is out of bounds"),
        ("models: {m: {backends: [{url: x}]}}", "doc: $.models.m.backends[0].url: not http"),
        ("health: {fal: 1}", "doc: $.health.fal: unknown key; did you mean `fall`?"),
        ("just words", "doc: $: not a mapping of keys to values"),
        ("", "doc: $: the file is empty"),
        ("models: [", "doc: line "),
        ("listen: {port: 1}", "doc: $.listen: not for a document that nodes share; write it in each"),
        ("keys: {file: k}", "doc: $.keys: not for"),
        ("store: {url: redis://r}", "doc: $.store: not for"),
        ("admin: {}", "doc: $.admin: not for"),
        ("workers: {}", "doc: $.workers: not for"),
        ("node: {}", "doc: $.node: not for"),
        ("pools: {state: /x}", "doc: $.pools.state: not for"),
        ("cache: {l1: {size: 1GiB}}", "doc: $.cache.l1.size: not for"),
        ("cache: {l1: {keep: true}}", "doc: $.cache.l1.keep: not for"),
    ],
)
def test_what_is_wrong_with_a_document_is_told_of_the_document(document, said):
    assert refusal(document).startswith(said)


def test_what_is_wrong_with_the_file_is_told_of_the_file():
    assert refusal("health: {fall: 4}", FILE.replace("rise: 2", "rise: 0")).startswith(
        "p.yaml: $.health.rise: 0 is"
    )
    assert refusal("breaker: {failures: 4}", FILE + "listn: {}").startswith("p.yaml: $.listn: unknown key")


POOL = "models: {m: {pool: {provider: process, command: [vllm, serve, --port, '{port}'%s], env: {%s}}}}"
SECRET = "abcdefabcdefabcdef"


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (f"# the key is sk-{SECRET}\nhealth: {{}}", "line 1"),
        (f"health: {{}}\nx: hf_{SECRET}", "line 2"),
        ("health: {path: /AKIAABCDEFGHIJKLMNOP}", "line 1"),
        (f"x: ghp_{SECRET}{SECRET}", "line 1"),
        (f"x: Bearer {SECRET}", "line 1"),
        ("x: |\n  -----BEGIN RSA PRIVATE KEY-----", "line 2"),
        ("models: {m: {backends: [{url: 'http://u:" + SECRET + "@h'}]}}", "line 1"),
        (f"x: eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx{SECRET}.x", "line 1"),
        (POOL % (f", --api-key, {SECRET}", ""), "$.models.m.pool.command[4]"),
        (POOL % (f", --api-key={SECRET}", ""), "$.models.m.pool.command[4]"),
        (POOL % ("", f"HF_TOKEN: {SECRET}"), "$.models.m.pool.env.HF_TOKEN"),
        (POOL % ("", f"AWS_SECRET: {SECRET}"), "$.models.m.pool.env.AWS_SECRET"),
    ],
)
def test_a_document_with_a_secret_is_refused_and_the_secret_not_said(document, place):
    said = refusal(document)
    assert said.startswith(f"doc: {place}: this looks like a secret; ")
    assert SECRET not in said
    assert "AKIA" not in said


def test_what_only_sounds_like_a_secret_is_none():
    document = POOL % (
        ", --tokenizer, x, --max-num-batched-tokens, '8192'",
        "TOKENIZERS_PARALLELISM: 'false'",
    )
    config = composed(document)
    assert config.models["m"].pool.env == {"TOKENIZERS_PARALLELISM": "false"}


@pytest.mark.parametrize(
    "text",
    [
        "# ://" + "a:" * 300_000,
        "# " + "-eyJ" * 200_000,
        "models: {m: {backends: [{url: 'http://h" + "${" * 400_000 + "'}]}}",
    ],
    ids=["a password", "tokens", "variables"],
)
def test_a_document_takes_no_longer_than_it_is_long(text):
    """Patterns without bounds would look at each of these for hours, in the controllers of all nodes."""
    try:
        composed("health: {fall: 4}\n" + text)
    except ConfigError as fault:
        assert "secret" in str(fault) or "`${` without a `}`" in str(fault)


@pytest.mark.parametrize(
    "size",
    ["9" * 18 + "GiB", "9" * 18 + ".5 GiB", "9" * 5000 + "GiB", "9" * 400 + ".5GiB", "1." + "9" * 5000 + "B"],
)
def test_a_size_that_no_machine_has_is_refused(size):
    """It could neither be read nor be told to the workers."""
    said = refusal(f"health: {{fall: 1}}\nlimits: {{max_buffered: {size}}}")
    assert said.startswith("doc: $.limits.max_buffered: ")
    assert ("is no" if len(size) > 50 else "is more than any machine has") in said


@pytest.mark.parametrize(
    "number", ["0x" + "f" * 5000, "1" + ":0" * 3000, "18446744073709551616", "-9223372036854775809"]
)
def test_a_number_that_cannot_be_quoted_is_refused_like_any_other(number):
    said = refusal(f"health: {{fall: 1}}\ncache: {{l1: {{ttl_s: {number}}}}}")
    assert said.startswith("doc: $: a number of more than 64 bits in line 2; ")


def test_more_values_than_any_configuration_has_are_counted_before_they_are_built(monkeypatch):
    monkeypatch.setattr("yaml.compose", None)
    with pytest.raises(ConfigError, match="doc: \\$: more than 200000 values; "):
        parse("doc", "a: [" + "x," * 200_001 + "]")
