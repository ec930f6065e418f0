"""What people's programs do, by their own clients: each answer is looked at, not only its status."""

import os
import subprocess
import sys
import tempfile

BASE, KEY = os.environ["BASE"], os.environ["KEY"]
MODEL = "org/fake"


def openai():
    import openai

    client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)
    ask = [{"role": "user", "content": "Say ten words."}]

    # The first one waits for the load: signs of life, then the stream.
    stream = client.chat.completions.create(model="gpt-4o", messages=ask, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert len(text.split()) > 3, text
    assert chunks[-1].usage.completion_tokens > 3, chunks[-1]

    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ask, max_tokens=9)
    whole = raw.parse()
    assert whole.choices[0].message.content.strip() and whole.usage.completion_tokens <= 9, whole
    assert raw.headers["x-request-id"], raw.headers

    assert client.completions.create(model=MODEL, prompt="one two", max_tokens=5).choices[0].text
    pieces = list(client.completions.create(model=MODEL, prompt="one two", max_tokens=5, stream=True))
    assert len(pieces) >= 5, pieces

    vectors = client.embeddings.create(model=MODEL, input=["a", "b"])
    assert len(vectors.data) == 2 and len(vectors.data[0].embedding) == 384

    answer = client.responses.create(model=MODEL, input="count")
    assert answer.output_text == "one two three" and answer.id == "resp_fake-1", answer
    events = list(client.responses.create(model=MODEL, input="count", stream=True))
    assert [e.type for e in events][0] == "response.created" and events[-1].type == "response.completed", events
    assert "".join(e.delta for e in events if e.type.endswith("delta")) == "one two three"
    assert client.responses.retrieve("resp_fake-2").model == "recalled"
    assert client.responses.cancel("resp_fake-1").model == "cancelled"
    refused(openai.NotFoundError, "response_not_found", lambda: client.responses.retrieve("resp_none"))

    with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
        wav.write(b"RIFF" + bytes(200_000))
        wav.flush()
        with open(wav.name, "rb") as file:
            heard = client.audio.transcriptions.create(model=MODEL, file=file)
        assert int(heard.text.split()[0]) > 200_000, heard
        with open(wav.name, "rb") as file:
            assert client.audio.translations.create(model=MODEL, file=file).text
    assert client.audio.speech.create(model=MODEL, voice="alloy", input="hi").content.startswith(b"ID3")
    assert client.images.generate(model=MODEL, prompt="hi").data[0].b64_json

    assert [m.id for m in client.models.list()] == [MODEL, "gpt-4o", "claude-x"]
    assert client.models.retrieve(MODEL).owned_by == "hostler"

    refused(openai.NotFoundError, "model_not_found", lambda: client.chat.completions.create(model="none", messages=ask))
    wrong = openai.OpenAI(base_url=f"{BASE}/v1", api_key="sk-wrong", max_retries=0)
    refused(openai.AuthenticationError, "invalid_api_key", lambda: wrong.models.list())

    # Who leaves in the middle of a stream is no trouble to the next one.
    stream = client.chat.completions.create(model=MODEL, messages=ask, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model=MODEL, messages=ask, max_tokens=5).choices


def refused(kind, code, call):
    try:
        call()
    except kind as error:
        assert error.code == code, error
        return
    raise AssertionError(f"{code} was expected")


def anthropic():
    import anthropic

    client = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)
    ask = [{"role": "user", "content": "Count."}]
    with client.messages.stream(model="claude-x", max_tokens=20, messages=ask) as stream:
        assert "".join(stream.text_stream) == "one two three"
        assert stream.get_final_message().stop_reason == "end_turn"
    whole = client.messages.create(model=MODEL, max_tokens=20, messages=ask)
    assert whole.content[0].text == "one two three" and whole.model == MODEL, whole
    assert client.messages.count_tokens(model=MODEL, messages=ask).input_tokens == 7
    try:
        client.messages.create(model="none", max_tokens=20, messages=ask)
        raise AssertionError("a model that is not there answered")
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error", error.body
    wrong = anthropic.Anthropic(base_url=BASE, api_key="sk-wrong", max_retries=0)
    try:
        wrong.messages.create(model=MODEL, max_tokens=20, messages=ask)
        raise AssertionError("a wrong key was let in")
    except anthropic.AuthenticationError as error:
        assert error.body["error"]["type"] == "authentication_error", error.body


def langchain():
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(model=MODEL, base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)
    assert "".join(str(c.content) for c in chat.stream("Say ten words.")).strip()
    assert str(chat.invoke("Say ten words.").content).strip()
    vectors = OpenAIEmbeddings(model=MODEL, base_url=f"{BASE}/v1", api_key=KEY, check_embedding_ctx_length=False)
    assert len(vectors.embed_query("a")) == 384


def llm():
    with tempfile.TemporaryDirectory() as home:
        with open(os.path.join(home, "extra-openai-models.yaml"), "w") as file:
            file.write(f"- model_id: mine\n  model_name: {MODEL}\n  api_base: {BASE}/v1\n  api_key_name: mine\n")
        env = dict(os.environ, LLM_USER_PATH=home)
        for more in ([], ["--no-stream"]):
            command = [os.environ["PATH_TO_LLM"], "-m", "mine", "--key", KEY, *more, "Say ten words."]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            assert done.returncode == 0 and done.stdout.strip(), done


globals()[sys.argv[1]]()
