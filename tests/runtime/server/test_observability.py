"""What the server tells its operators: metrics under vLLM's names, a line of JSON per request, spans."""

import json
import logging
import sys

import httpx2
import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client.parser import text_string_to_metric_families

from runtime.errors import EnginewrightError
from runtime.server.logs import JsonFormatter
from runtime.server.tracing import Tracer, make_tracer
from tests.runtime.server.harness import CHAT, COMPLETIONS, num_open, running, until

BODY = {"prompt": "hello", "max_tokens": 20, "ignore_eos": True, "temperature": 0}


def metrics(client):
    """Every sample by its name, the labels that all have left out."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name not in ("model_name", "engine")}
            assert sample.labels["model_name"] == "tiny"
            found[sample.name, *labels.values()] = sample.value
    return found


def test_metrics_have_vllms_names_and_move(drafting_llm):
    with running(drafting_llm) as (_, address), httpx2.Client(base_url=address) as client:
        before = metrics(client)
        for _ in range(2):
            assert client.post(COMPLETIONS, json=BODY).status_code == 200
        after = metrics(client)

    def moved(*name):
        return after[name] - before.get(name, 0)

    assert moved("vllm:prompt_tokens_total") == 10
    assert moved("vllm:generation_tokens_total") == 40
    assert moved("vllm:request_success_total", "length") == 2
    assert moved("vllm:request_success_total", "stop") == moved("vllm:request_success_total", "abort") == 0
    assert moved("vllm:prefix_cache_queries_total") == 10
    assert moved("vllm:prefix_cache_hits_total") == 4  # a block of the second prompt
    drafts, accepted = moved("vllm:spec_decode_num_drafts_total"), moved("vllm:spec_decode_num_accepted_tokens_total")
    assert 0 < drafts < 40
    assert 0 < accepted < moved("vllm:spec_decode_num_draft_tokens_total")
    per_position = [moved("vllm:spec_decode_num_accepted_tokens_per_pos_total", str(depth)) for depth in range(3)]
    assert sum(per_position) == accepted
    assert per_position[0] >= per_position[1] >= per_position[2]
    # Two tokens came of the prompts; every later step gave one that was not drafted.
    assert moved("vllm:inter_token_latency_seconds_count") == 40 - 2 - accepted
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time",
                 "request_decode_time", "request_inference_time", "request_time_per_output_token"):  # fmt: skip
        assert moved(f"vllm:{name}_seconds_count") == 2
        assert moved(f"vllm:{name}_seconds_sum") > 0
    assert moved("vllm:request_prompt_tokens_sum") == 10
    assert moved("vllm:request_generation_tokens_sum") == 40
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert after[f"vllm:{gauge}",] == 0
    assert after["vllm:num_preemptions_total",] == 0


def test_gauges_show_what_is_going_on_and_a_client_that_leaves_is_an_abort(held_llm, pace):
    body = {**BODY, "max_tokens": 80, "n": 6, "stream": True}
    with running(held_llm) as (server, address), httpx2.Client(base_url=address) as client:
        with client.stream("POST", COMPLETIONS, json=body):
            until(lambda: pace.num_steps == 6)
            during = metrics(client)
        until(lambda: num_open(server) == 0)
        pace.go_on()
        until(lambda: metrics(client)["vllm:num_requests_running",] == 0)
        after = metrics(client)
    assert during["vllm:num_requests_running",] == 4
    assert during["vllm:num_requests_waiting",] == 2
    assert 0 < during["vllm:kv_cache_usage_perc",] < 1
    assert after["vllm:request_success_total", "abort"] == 6
    assert after["vllm:kv_cache_usage_perc",] == 0


def logged(caplog, path):
    (record,) = [record for record in caplog.records if getattr(record, "fields", {}).get("path") == path]
    return json.loads(JsonFormatter().format(record))


def test_each_request_is_one_line_of_json_without_its_text(call, caplog):
    caplog.set_level(logging.INFO)
    call(COMPLETIONS, {**BODY, "prompt": "secret wörds"}, headers={"x-request-id": "mine-1"})
    line = logged(caplog, COMPLETIONS)
    assert (line["request_id"], line["method"], line["status"]) == ("mine-1", "POST", 200)
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reasons"]) == (13, 20, ["length"])
    assert 0 <= line["queue_ms"] <= line["ttft_ms"] <= line["duration_ms"]
    assert "secret" not in json.dumps(line)


def test_prompts_and_answers_are_logged_where_asked_for(call, caplog):
    caplog.set_level(logging.INFO)
    answer = call(CHAT, {"messages": [{"role": "user", "content": "secret"}], "max_tokens": 5}, log_prompts=True)
    line = logged(caplog, CHAT)
    assert line["prompt"] == [{"role": "user", "content": "secret"}]
    assert line["output"] == [answer.json()["choices"][0]["message"]["content"]]


def test_a_refused_request_is_logged_with_its_reason_and_no_key(call, caplog):
    caplog.set_level(logging.INFO)
    call(COMPLETIONS, BODY, keys=["right"], headers={"authorization": "Bearer wrong", "x-request-id": "a b\n"})
    line = logged(caplog, COMPLETIONS)
    assert (line["status"], line["error"]) == (401, "unknown API key")
    assert line["request_id"].startswith("req-")
    assert "wrong" not in json.dumps(line)


def test_probes_are_logged_only_when_they_fail(call, caplog):
    caplog.set_level(logging.INFO)
    call("/health")
    assert not [record for record in caplog.records if record.name.startswith("enginewright")]


class Kept(SpanExporter):
    def __init__(self):
        self.spans = []

    def export(self, spans):
        self.spans += spans
        return SpanExportResult.SUCCESS


def test_a_span_joins_the_callers_trace_and_carries_the_counts(shared_llm):
    kept = Kept()
    tracer = Tracer(kept)
    trace = "0af7651916cd43dd8448eb211c80319c"
    with running(shared_llm, tracer=tracer) as (_, address):
        httpx2.post(address + COMPLETIONS, json=BODY, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
        httpx2.post(address + COMPLETIONS, json={"prompt": ""})
        httpx2.get(f"{address}/health")
    tracer.close()
    answered, refused = kept.spans
    assert f"{answered.context.trace_id:032x}" == trace
    assert answered.name == f"POST {COMPLETIONS}"
    assert answered.attributes["gen_ai.usage.output_tokens"] == 20
    assert answered.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert refused.attributes["http.response.status_code"] == 400
    assert "the prompt is empty" in refused.status.description


def test_traces_that_cannot_be_had_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(EnginewrightError, match=r"traces=otlp needs packages .*opentelemetry-exporter-otlp-proto-http"):
        make_tracer("otlp")
    with pytest.raises(EnginewrightError, match="traces is 'zipkin'; it must be one of otlp, console"):
        make_tracer("zipkin")
