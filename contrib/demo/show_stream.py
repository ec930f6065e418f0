#!/usr/bin/env python3
"""Prints the text of a streamed chat completion as it comes, and at its end how it went. Fails if it was no such stream."""
import json
import sys
import time

started = time.monotonic()
first = None
pieces = 0
finished = False
strange = []
for line in sys.stdin:
    line = line.rstrip("\n")
    if not line or line.startswith(":"):  # a comment
        continue
    if line == "data: [DONE]":
        finished = True
        continue
    try:
        chunk = json.loads(line.removeprefix("data: "))
        text = chunk["choices"][0]["delta"].get("content") if chunk.get("choices") else ""
        if "error" in chunk:
            strange.append(line)
    except (ValueError, KeyError, IndexError, TypeError):
        strange.append(line)
        continue
    if text:
        first = first or time.monotonic()
        pieces += 1
        print(text, end="", flush=True)

print("\n")
if not finished or not first:
    sys.exit("demo: the stream did not end as it should: " + ("\n".join(strange) or "nothing came"))
ended = time.monotonic()
rate = pieces / max(ended - first, 0.001)
print(f"   first token after {first - started:.2f} s (daemon start and model load included), then {rate:.0f} tokens/s")
