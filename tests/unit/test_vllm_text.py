"""vLLM's metrics: the three numbers that steer, and the families of many servers as one text."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.workers.board import Load
from penstock.workers.vllm_text import load_in, merged

PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="a} 9 b"} 4.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 5.0
vllm:num_requests_waiting{engine="1",model_name="m"} 6.0
vllm:num_requests_waiting_by_reason{reason="capacity"} 70.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""


def test_the_load_is_that_of_all_engines_together() -> None:
    assert load_in(PAGE) == Load(waiting=11, running=7, kv_permille=500)


def test_an_older_server_calls_its_cache_otherwise() -> None:
    page = b"vllm:num_requests_waiting 1\nvllm:gpu_cache_usage_perc 0.125\n"
    assert load_in(page) == Load(waiting=1, kv_permille=125)


@pytest.mark.parametrize("page", [b"", b"<html>", b"up 1\n", b"xvllm:num_requests_waiting 4\n"])
def test_a_page_of_something_else_says_nothing(page: bytes) -> None:
    assert load_in(page) is None


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"-3", b"x", b"1e999"])
def test_a_number_that_cannot_be_is_passed_over(value: bytes) -> None:
    assert load_in(b"vllm:num_requests_running 2\nvllm:num_requests_waiting " + value) == Load(running=2)


def test_a_number_beyond_all_reason_fits_its_cell() -> None:
    found = load_in(b"vllm:num_requests_waiting 1e30\nvllm:kv_cache_usage_perc 77\n")
    assert found == Load(waiting=1 << 40, kv_permille=1000)


def test_families_of_two_servers_are_one_family_each_with_the_servers_name() -> None:
    other = PAGE.replace(b" 3.0", b" 33.0") + b"python_gc_objects 4\n"
    text = merged({"a:1": PAGE, "b:2": other}).decode()
    assert text.count("# TYPE vllm:num_requests_running gauge") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert "python_gc_objects" not in families
    running = families["vllm:num_requests_running"]
    assert running.type == "gauge"
    found = {(one.labels["backend"], one.labels["engine"]): one.value for one in running.samples}
    assert found == {("a:1", "0"): 3.0, ("a:1", "1"): 4.0, ("b:2", "0"): 33.0, ("b:2", "1"): 4.0}


def test_a_histogram_stays_whole() -> None:
    page = (
        b"# TYPE vllm:ttft_seconds histogram\n"
        b'vllm:ttft_seconds_bucket{le="1.0"} 1.0\nvllm:ttft_seconds_bucket{le="+Inf"} 2.0\n'
        b"vllm:ttft_seconds_sum 3.5\nvllm:ttft_seconds_count 2.0\n"
    )
    (family,) = text_string_to_metric_families(merged({"/run/v.sock": page}).decode())
    assert (family.type, len(family.samples)) == ("histogram", 4)
    assert {one.labels["backend"] for one in family.samples} == {"/run/v.sock"}


@pytest.mark.parametrize(
    "line",
    [
        b'vllm:x{a="1"',
        b'vllm:x{a="1"} one',
        b'vllm:x{backend="mine"} 1',
        b'vllm:x{a="1",backend="mine"} 1',
        b"vllm:x 1 2 3",
        b"penstock_worker_up 0",
        b'vllm:x{a="\xff"} 1\x00',
        b"# TYPE penstock_worker_up counter",
    ],
)
def test_a_line_that_could_spoil_the_text_is_left_out(line: bytes) -> None:
    assert merged({"a:1": line + b"\n"}) == b""


def test_a_servers_name_cannot_end_its_label() -> None:
    text = merged({'/run/"x"\\': b"vllm:x 1\n"}).decode()
    (family,) = text_string_to_metric_families(text)
    assert family.samples[0].labels == {"backend": '/run/"x"\\'}
