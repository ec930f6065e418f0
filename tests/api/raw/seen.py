"""An engine on uvicorn that writes down each request that it sees: method, path, length of the body."""
import json, sys, uvicorn

log = open(sys.argv[2], "w", buffering=1)


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    path = scope["raw_path"].decode("latin-1")
    log.write(f"{scope['method']} {path} {len(body)}\n")
    answer = json.dumps({"object": "chat.completion", "choices": []}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


uvicorn.run(app, uds=sys.argv[1], log_level="error", http=sys.argv[3])
