// What people's programs do, by their own clients: each answer is looked at, not only its status.
import assert from "node:assert/strict";

const { BASE, KEY } = process.env;
const model = "org/fake";
const messages = [{ role: "user", content: "Say ten words." }];

async function openai() {
  const { default: OpenAI } = await import("openai");
  const client = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY, maxRetries: 0 });
  let text = "";
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  assert.ok(text.trim().split(/\s+/).length > 3, text);
  const whole = await client.chat.completions.create({ model: "gpt-4o", messages, max_tokens: 9 });
  assert.ok(whole.choices[0].message.content.trim());
  assert.ok(whole._request_id);
  const vectors = await client.embeddings.create({ model, input: ["a", "b"], encoding_format: "float" });
  assert.equal(vectors.data[0].embedding.length, 384);
  assert.equal((await client.responses.create({ model, input: "count" })).output_text, "one two three");
  const types = [];
  for await (const event of await client.responses.create({ model, input: "count", stream: true })) types.push(event.type);
  assert.equal(types.at(-1), "response.completed");
  const file = new File([new Uint8Array(100000)], "a.wav");
  assert.match((await client.audio.transcriptions.create({ model, file })).text, /bytes were heard/);
  const ids = [];
  for await (const entry of client.models.list()) ids.push(entry.id);
  assert.deepEqual(ids, [model, "gpt-4o", "claude-x"]);
  assert.equal((await client.models.retrieve(model)).id, model);
  await assert.rejects(client.chat.completions.create({ model: "none", messages }), { status: 404, code: "model_not_found" });
}

async function anthropic() {
  const { default: Anthropic } = await import("@anthropic-ai/sdk");
  const client = new Anthropic({ baseURL: BASE, apiKey: KEY, maxRetries: 0 });
  const stream = client.messages.stream({ model: "claude-x", max_tokens: 20, messages });
  assert.equal(await stream.finalText(), "one two three");
  const whole = await client.messages.create({ model, max_tokens: 20, messages });
  assert.equal(whole.content[0].text, "one two three");
  await assert.rejects(client.messages.create({ model: "none", max_tokens: 20, messages }), { status: 404 });
}

await { openai, anthropic }[process.argv[2]]();
