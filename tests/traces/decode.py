"""Reads an OTLP request in JSON as OpenTelemetry defines it and prints its spans.

OTLP's JSON is protobuf's but for the identifiers, which are hexadecimal instead of base64
(https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding). What the definition does not know is refused.
"""
import base64
import json
import sys

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

body = json.load(sys.stdin)
for resource in body["resourceSpans"]:
    for scope in resource["scopeSpans"]:
        for span in scope["spans"]:
            for key, length in ("traceId", 32), ("spanId", 16), ("parentSpanId", 16):
                if key in span:
                    assert len(span[key]) == length, span
                    span[key] = base64.b64encode(bytes.fromhex(span[key])).decode()
request = json_format.ParseDict(body, ExportTraceServiceRequest())


def value(v):
    return getattr(v, v.WhichOneof("value"))


spans = []
for resource in request.resource_spans:
    about = {a.key: value(a.value) for a in resource.resource.attributes}
    for scope in resource.scope_spans:
        for span in scope.spans:
            spans.append({
                "service": about["service.name"],
                "trace": span.trace_id.hex(),
                "span": span.span_id.hex(),
                "parent": span.parent_span_id.hex(),
                "name": span.name,
                "start": span.start_time_unix_nano,
                "end": span.end_time_unix_nano,
                "attributes": {a.key: value(a.value) for a in span.attributes},
                "events": [e.name for e in span.events],
            })
json.dump(spans, sys.stdout)
