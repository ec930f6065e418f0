// The page's script in node: a document of nothing but what it uses, and time that the test moves.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

const SCRIPT = readFileSync(new URL("script.js", import.meta.url), "utf8");
const WANTED = "seen, take, draw, drawModels, openLog";

class Element {
  constructor() {
    Object.assign(this, { children: [], dataset: {}, style: {}, attributes: {}, open: false, options: [] });
    const classes = this.classes = new Set();
    this.classList = { add: (c) => classes.add(c), remove: (c) => classes.delete(c) };
  }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(name, act) { this[`on${name}`] = act; }
  contains() { return false; }
  showModal() { this.open = true; }
  close() { this.open = false; }
  get childNodes() { return this.children; }
  get textContent() { return this.children.map((c) => (typeof c === "string" ? c : c.textContent)).join("|"); }
  set textContent(text) { this.children = [text]; }
}

// Its page, the connection that it has, and its timers, which run when the test says so.
function open() {
  const at = new Map(), timers = new Map();
  const page = { clock: 0, timers, asked: 0, $: (id) => at.get(id) ?? at.set(id, new Element()).get(id) };
  const document = { getElementById: page.$, createElement: () => new Element(), createElementNS: () => new Element(), body: page.$("body") };
  const fetch = async (_, { signal }) => {
    page.asked += 1;
    const body = new ReadableStream({ start: (it) => { page.line = it; } });
    signal?.addEventListener("abort", () => page.line.error(signal.reason));
    return new Response(body);
  };
  let last = 0;
  const later = (act, time) => { timers.set(++last, { act, time }); return last; };
  page.fire = (time) => {
    const due = [...timers].filter(([, timer]) => timer.time === time);
    assert.ok(due.length, `nothing waits for ${time} ms`);
    for (const [id, timer] of due) { timers.delete(id); timer.act(); }
  };
  const outside = {
    document, fetch, setTimeout: later, clearTimeout: (id) => timers.delete(id), setInterval: (act) => { page.second = act; },
    performance: { now: () => page.clock }, sessionStorage: { getItem: () => "" }, Option: Element, location: {},
  };
  const inside = new Function(...Object.keys(outside), `${SCRIPT}\nreturn { ${WANTED} };`);
  return Object.assign(page, inside(...Object.values(outside)));
}

const MODEL = {
  name: "m", aliases: [], engine: "vllm", phase: "ready", instance: "m#1-beef", gpus: [], pinned: false, in_flight: 0, queued: 0, chunks: 0,
  last_used: { secs: 0, nanos: 0 }, progress: null, observed: null, footprint: null, planned: null, report: null, error: null, sleep: null,
};
const status = (now, epoch, model = {}) => ({
  now: { secs: now, nanos: 0 }, epoch_us: epoch, state: "running", version: "1", podman_version: "5", problems: [], gpus: [], externals: [],
  models: [{ ...MODEL, ...model }],
});
const until = async (what) => { for (let n = 0; n < 1000 && !what(); n++) await new Promise(setImmediate); assert.ok(what(), String(what)); };

test("the load of one daemon says nothing of the next", () => {
  const page = open();
  page.take(status(1000, 1, { chunks: 0, in_flight: 50 }));
  page.take(status(1001, 1, { chunks: 50, in_flight: 50 }));
  assert.equal(page.$("n-chunks").textContent, "50");
  page.take(status(1, 2));
  assert.equal(page.$("n-chunks").textContent, "0");
  page.take(status(3, 2, { chunks: 8 }));
  assert.equal(page.$("n-chunks").textContent, "4");
  assert.deepEqual(page.seen.load.map((p) => p.at), [1, 3]);
});

test("a host that says nothing any more is lost, and asked again", async () => {
  const page = open();
  await until(() => page.line);
  const say = (of) => page.line.enqueue(new TextEncoder().encode(`event: status\ndata: ${JSON.stringify(of)}\n\n`));
  say(status(10, 1, { progress: null }));
  await until(() => page.$("state").textContent === "running");
  assert.equal([...page.timers.values()].filter((t) => t.time === 30000).length, 1, "each word begins the time anew");
  page.fire(30000);
  await until(() => page.$("state").textContent === "not reachable");
  assert.ok(page.$("body").classes.has("lost"));
  // What it was is not drawn on as what it is.
  page.seen.status.models[0].progress = { since: { secs: 1, nanos: 0 } };
  page.second();
  assert.equal(page.$("state").textContent, "not reachable");
  page.fire(500);
  await until(() => page.asked === 2);
  say(status(50, 1));
  await until(() => page.$("state").textContent === "running");
  assert.ok(!page.$("body").classes.has("lost"));
});

test("the age of the last use goes on, and rows that are not needed go", () => {
  const page = open();
  page.take(status(0, 1));
  const row = page.$("models").children[0];
  assert.match(row.textContent, /used now/);
  page.take(status(300, 1));
  assert.match(row.textContent, /used 5 min ago/);
  assert.equal(page.$("models").children[0], row, "a row is kept");
  page.drawModels([]);
  page.take(status(301, 1));
  assert.notEqual(page.$("models").children[0], row);
});

test("why says of each model in the way why it stays or leaves", () => {
  const victim = (instance, more) => ({ instance, spared: null, chosen: false, asleep: null, stopped_because: null, ...more });
  const report = {
    need: { bytes: 2 ** 30, source: "declared" },
    devices: [{ gpu: "GPU-1", free: 0, reserved: 0, foreign: 0, empty: 0, holders: [], verdict: "fits_after_eviction" }],
    victims: [
      victim("a", { spared: "it is pinned" }), victim("b"), victim("c", { chosen: true, asleep: 2 }),
      victim("d", { chosen: true, stopped_because: "it cannot sleep" }),
    ],
  };
  const page = open();
  page.$("why").open = true;
  page.$("why").dataset.model = "m";
  page.take(status(1, 1, { report }));
  const text = page.$("why-text").textContent;
  for (const said of [
    "a|stays: it is pinned", "b|could leave, and need not", "c|goes to sleep (level 2)", "d|is stopped: it cannot sleep", "fits after eviction",
  ]) assert.ok(text.includes(said), `${said} is not in ${text}`);
});

// What the page asked for last, played to its end.
async function play(page, pieces) {
  const { line } = page;
  for (const piece of pieces) {
    line.enqueue(new TextEncoder().encode(piece));
    await new Promise(setImmediate);
  }
  line.close();
}

test("a log that was cut off does not say that its container has ended", async () => {
  for (const [pieces, said] of [
    [['event: line\ndata: "one"\n\n', "event: end\ndata: {}\n\n"], "one\n|— the container has ended —\n"],
    [['event: line\ndata: "one"\n\n'], "one\n|— the connection has ended —\n"],
  ]) {
    const page = open();
    const shown = page.openLog("m");
    await until(() => page.asked === 2);
    await play(page, pieces);
    await shown;
    assert.equal(page.$("log-text").textContent, `|${said}`);
  }
});

test("what a model thinks is seen, and streams are read as the standard has them", async () => {
  const chunk = (delta) => JSON.stringify({ choices: [{ delta }] });
  for (const [pieces, said] of [
    [[`data: ${chunk({ role: "assistant", content: null })}\n\n`, `data: ${chunk({ content: "Yes" })}\n\n`, `data: ${chunk({ content: "." })}\n\n`], "Yes|."],
    [[`data: ${chunk({ reasoning_content: "Hm" })}\n\ndata: ${chunk({ content: "Yes" })}\n\n`], "Hm|\n\n|Yes"],
    [[`data: ${chunk({ reasoning: "Hm" })}\n\n`], "Hm"],
    [[`data: ${chunk({ content: "Yes" })}\r\n\r`, `\ndata: [DONE]\r\n\r\n`], "Yes"],
    [[`: here\n\ndata:${chunk({ content: "Yes" })}\n\ndata:[DONE]\n\n`], "Yes"],
  ]) {
    const page = open();
    page.$("chat-text").value = "Is it?";
    const answered = page.$("chat").onsubmit({ preventDefault: () => {} });
    await until(() => page.asked === 2);
    await play(page, pieces);
    await answered;
    assert.equal(page.$("chat-answer").textContent, `|${said}`, pieces[0]);
    assert.match(page.$("chat-note").textContent, /^first text after /);
  }
});
