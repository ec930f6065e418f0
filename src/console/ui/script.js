"use strict";
// One page over /api/v1/events. Whatever comes from the host is put in as text, never as HTML.
const $ = (id) => document.getElementById(id);
const seen = { status: null, at: 0, events: [], you: null, load: [], chunks: null, live: false };
const HISTORY = 300, LANES = 900, EVENTS = 256;
// The host says something every ten seconds; one that is silent for so long is gone without a word.
const SILENCE = 30000;
let key = sessionStorage.getItem("hostler-key") || "";

function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}
function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
const seconds = (d) => (d ? d.secs + d.nanos / 1e9 : null);
const now = () => seen.status ? seconds(seen.status.now) + (performance.now() - seen.at) / 1000 : 0;
function bytes(n) {
  if (n === null || n === undefined) return "unknown";
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (n >= size) return `${(n / size).toFixed(n / size < 100 ? 1 : 0)} ${unit}`;
  }
  return `${n} B`;
}
function time(s) {
  if (s < 1) return "now";
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}
const ago = (s) => (s < 1 ? "now" : `${time(s)} ago`);
const took = (s) => (s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`);
function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => { $("toast").hidden = true; }, 8000);
}
const path = (model, rest) => `/api/v1/models/${model.split("/").map(encodeURIComponent).join("/")}/${rest}`;

// ---- the host ----
async function ask(url, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (key) headers.authorization = `Bearer ${key}`;
  const answer = await fetch(url, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  let message = `HTTP ${answer.status}`;
  try { message = (await answer.json()).error.message; } catch { /* The status is all there is. */ }
  const error = new Error(message);
  error.status = answer.status;
  throw error;
}
async function* events(answer, heard = () => {}) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    // Engines pass unchanged, and not all of them end lines, or write a field, as this host does.
    const whole = (rest + value).split(/\r?\n\r?\n/);
    rest = whole.pop();
    for (const lines of whole.map((text) => text.split(/\r?\n/))) {
      const field = (name) => lines.filter((l) => l.startsWith(`${name}:`)).map((l) => l.slice(name.length + 1).replace(/^ /, "")).join("\n");
      yield { name: field("event"), data: field("data") };
    }
  }
}
async function follow() {
  let pause = 500;
  for (;;) {
    const line = new AbortController();
    let silent;
    const heard = () => { clearTimeout(silent); silent = setTimeout(() => line.abort(), SILENCE); };
    try {
      heard();
      const answer = await ask("/api/v1/events", { signal: line.signal });
      pause = 500;
      seen.events = [];
      for await (const { name, data } of events(answer, heard)) {
        if (name === "you") { seen.you = JSON.parse(data); you(); }
        if (name === "status") take(JSON.parse(data));
        if (name === "notice") { seen.events.push(JSON.parse(data)); seen.events = seen.events.slice(-EVENTS); drawEvents(); drawLanes(); }
      }
      clearTimeout(silent);
      lost("connecting");
    } catch (error) {
      clearTimeout(silent);
      if (error.status === 401 || error.status === 403) {
        lost("key needed");
        await askKey(key ? error.message : "");
        continue;
      }
      lost("not reachable");
    }
    await new Promise((done) => setTimeout(done, pause));
    pause = Math.min(pause * 2, 5000);
  }
}
function take(status) {
  // Another daemon counts its time, and what it has served, from nothing; a host that slept has a gap there.
  if (seen.status && status.epoch_us !== seen.status.epoch_us) { seen.load = []; seen.chunks = null; $("n-chunks").textContent = "0"; }
  seen.status = status;
  seen.at = performance.now();
  seen.live = true;
  document.body.classList.remove("lost");
  draw();
}
function lost(word) {
  seen.live = false;
  document.body.classList.add("lost");
  $("state").textContent = word;
  $("state").className = "pill p-lost";
}

// ---- keys ----
function askKey(note) {
  $("key-note").textContent = note;
  $("key-open").hidden = false;
  if (!$("key").open) $("key").showModal();
  return new Promise((done) => { askKey.done = done; });
}
$("key-form").addEventListener("submit", () => {
  key = $("key-text").value.trim();
  sessionStorage.setItem("hostler-key", key);
  $("key-text").value = "";
  if (askKey.done) { askKey.done(); askKey.done = null; } else location.reload();
});
$("key-cancel").addEventListener("click", () => $("key").close());
$("key-open").addEventListener("click", () => $("key").showModal());
function you() {
  const { key: name, admin, keys } = seen.you;
  $("who").textContent = name ? `key ${name}${admin ? "" : ", read-only"}` : "";
  $("key-open").hidden = !keys;
  $("read-only").hidden = admin;
  $("read-only").textContent = keys
    ? "Read-only: only a key with admin = true loads and unloads models and reads logs here."
    : "Read-only: no keys are configured. On the host, the command hostler loads and unloads models and shows logs; here, a key with admin = true would ([auth] keys_file).";
}

// ---- drawing ----
const PARTS = ["confirmed", "reserved", "releasing", "quarantined", "foreign", "headroom"];
const MEANING = {
  confirmed: "held by models that are ready", reserved: "promised to models that start", releasing: "being given back",
  quarantined: "not given back", foreign: "used by others", headroom: "kept free",
};
$("legend").append(...PARTS.flatMap((p) => [el("span", "one", el("i", `key s-${p}`), `${p} (${MEANING[p]})`), " "]));

function draw() {
  const s = seen.status;
  $("state").textContent = s.state;
  $("state").className = `pill p-${s.state}`;
  $("about").textContent = `${s.version} · up ${time(now())} · podman ${s.podman_version}`;
  drawProblems(s.problems);
  $("gpus").replaceChildren(...s.gpus.map(gpu));
  drawModels(s.models);
  drawExternals(s.externals);
  drawChoice([...s.models, ...s.externals].map((m) => m.name));
  drawLoad(s.models);
  if ($("why").open) drawWhy();
}
function drawProblems(problems) {
  $("problems").hidden = problems.length === 0;
  $("problems").replaceChildren(...problems.map((p) => el("p", "", el("b", "", p.code), ` for ${time(now() - seconds(p.since))}: ${p.message}`)));
}
function gpu(g) {
  const total = g.total;
  const bar = el("div", "bar");
  bar.setAttribute("role", "img");
  const parts = PARTS.filter((p) => g[p] > 0).map((p) => `${p} ${bytes(g[p])}`);
  bar.setAttribute("aria-label", parts.join(", ") || "nothing in use");
  for (const p of PARTS) {
    if (!total || !g[p]) continue;
    const part = el("span", `s-${p}`);
    part.style.flex = `0 0 ${(100 * g[p]) / total}%`;
    part.title = `${p}: ${bytes(g[p])}, ${MEANING[p]}`;
    bar.append(part);
  }
  const ours = new Map();
  for (const p of g.processes) {
    const name = p.model || "others";
    ours.set(name, (ours.get(name) || 0) + (p.bytes || 0));
  }
  const holders = [...ours].map(([name, n]) => `${name} ${bytes(n)}`).join(" · ");
  return el("article", "card", el("div", "row", el("b", "", g.name), g.id === g.name ? null : el("span", "quiet", g.id), el("span", "gap"),
    el("span", "", `${bytes(g.free)} free of ${bytes(total)}`)), bar,
  el("div", "quiet", parts.join(" · ") || "nothing in use"), holders ? el("div", "quiet", holders) : null);
}
function memory(m) {
  if (m.observed !== null && m.phase !== "stopped") return `${bytes(m.observed)} held`;
  if (m.footprint) return `${bytes(m.footprint.bytes)} measured, ${m.footprint.confidence}`;
  if (m.planned) return `${bytes(m.planned.bytes)} ${m.planned.source}`;
  return "not measured yet";
}
function progress(m) {
  if (!m.progress) return null;
  const since = now() - seconds(m.progress.since);
  const bar = el("progress");
  bar.setAttribute("aria-label", `${m.name}: ${m.phase}`);
  let text = `${m.phase} for ${time(since)}`;
  if (m.progress.pulled) {
    const { done, total } = m.progress.pulled;
    bar.max = total || 1; bar.value = done;
    text = `pulled ${bytes(done)} of ${bytes(total)}`;
  } else if (m.progress.expected) {
    const expected = seconds(m.progress.expected);
    bar.max = expected; bar.value = Math.min(since, expected * 0.99);
    text = since < expected ? `about ${time(expected - since)} to go` : `longer than usual (${time(expected)})`;
  }
  return el("div", "", bar, el("div", "quiet", text));
}
const ACTS = {
  stopped: ["load", "pin"], waiting: ["unload"], failed: ["load"], pulling: ["unload"], starting: ["unload"], loading: ["unload"],
  ready: ["unload", "sleep"], draining: [], dozing: [], asleep: ["wake", "unload"], waking: [], stopping: [],
};
const used = (m) => m.in_flight || m.queued ? `${m.in_flight} running, ${m.queued} waiting` : m.last_used ? `used ${ago(now() - seconds(m.last_used))}` : "not used yet";
const buttons = new Map();
function drawModels(models) {
  // Rows are kept and filled anew, so that a button does not vanish under a finger.
  const rows = models.map((m) => {
    let row = buttons.get(m.name);
    if (!row) { row = el("article", "model"); row.dataset.model = m.name; buttons.set(m.name, row); }
    const wanted = JSON.stringify([m, seen.you, used(m)]);
    if (row.dataset.drawn !== wanted || m.progress) { fill(row, m); row.dataset.drawn = wanted; }
    return row;
  });
  const names = new Set(models.map((m) => m.name));
  for (const name of buttons.keys()) if (!names.has(name)) buttons.delete(name);
  const here = [...$("models").children];
  if (rows.length !== here.length || rows.some((r, at) => r !== here[at])) $("models").replaceChildren(...rows);
}
function drawChoice(names) {
  if ([...$("chat-model").options].map((o) => o.value).join("\n") !== names.join("\n")) {
    const chosen = $("chat-model").value;
    $("chat-model").replaceChildren(...names.map((n) => new Option(n, n, false, n === chosen)));
  }
}
const HEALTH = { well: "p-ready", unwell: "p-failed", unknown: "p-waiting" };
function drawExternals(externals) {
  $("externals").replaceChildren(...externals.map((e) => {
    const row = el("article", "model",
      el("div", "", el("span", "name", e.name), el("div", "quiet", ["elsewhere", ...e.aliases].join(" · "))),
      el("div", "", el("span", `pill ${HEALTH[e.health]}`, e.health)),
      el("div", "quiet", e.url),
      el("div", "quiet", e.since ? `for ${time(now() - seconds(e.since))}` : "not asked yet"));
    row.dataset.external = e.name;
    if (e.why) row.append(el("div", "note bad", e.why));
    return row;
  }));
}
function fill(row, m) {
  const focused = row.contains(document.activeElement) ? document.activeElement.dataset.act : null;
  const acts = el("div", "acts");
  const button = (word, act, off, click) => {
    const b = el("button", "", word);
    b.type = "button"; b.disabled = off; b.dataset.act = act;
    b.setAttribute("aria-label", `${word} ${m.name}`);
    b.addEventListener("click", click);
    acts.append(b);
  };
  const admin = Boolean(seen.you && seen.you.admin);
  for (const act of ACTS[m.phase] || []) {
    if (act === "sleep" && !m.sleep) continue;
    button(act, act, !admin, () => perform(m.name, act));
  }
  if (m.pinned) button("unpin", "unpin", !admin, () => perform(m.name, "unpin"));
  else if (m.phase === "ready") button("pin", "pin", !admin, () => perform(m.name, "pin"));
  button("log", "log", !admin || !m.instance, () => openLog(m.name));
  button("why", "why", !m.report, () => openWhy(m.name));
  const place = m.gpus.length ? ` on ${m.gpus.join(", ")}` : "";
  const notes = [[m.waiting_for, "note quiet"], [m.phase !== "waiting" && m.error && `${m.error.code}: ${m.error.message}`, "note bad"]];
  row.replaceChildren(
    el("div", "", el("span", "name", m.name), m.pinned ? el("span", "quiet", " pinned") : null, el("div", "quiet", [m.engine, ...m.aliases].join(" · "))),
    el("div", "", el("span", `pill p-${m.phase}`, m.phase)),
    progress(m) || el("div", "quiet", memory(m) + place),
    el("div", "quiet", used(m)),
    acts);
  for (const [note, kind] of notes) if (note) row.append(el("div", kind, note));
  if (focused) row.querySelector(`[data-act="${focused}"]`)?.focus();
}
async function perform(model, act) {
  try {
    await ask(path(model, act), { method: "POST" });
  } catch (error) {
    toast(`${act} ${model}: ${error.message}`);
  }
}
function drawLoad(models) {
  const sum = (f) => models.reduce((n, m) => n + f(m), 0);
  const at = now(), chunks = sum((m) => m.chunks);
  const point = { at, flight: sum((m) => m.in_flight), queue: sum((m) => m.queued) };
  const last = seen.chunks;
  if (last && at - last.at >= 0.9) $("n-chunks").textContent = String(Math.max(0, Math.round((chunks - last.chunks) / (at - last.at))));
  if (!last || at - last.at >= 0.9) seen.chunks = { at, chunks };
  $("n-flight").textContent = String(point.flight);
  $("n-queue").textContent = String(point.queue);
  seen.load = seen.load.filter((p) => p.at > at - HISTORY).concat(point);
  const top = Math.max(4, ...seen.load.map((p) => Math.max(p.flight, p.queue)));
  const line = (name) => {
    let d = "", y = 0;
    for (const p of seen.load) {
      const x = 300 - ((at - p.at) / HISTORY) * 300;
      const next = 58 - (p[name] / top) * 54;
      d += d ? `H${x.toFixed(1)}V${next.toFixed(1)}` : `M${x.toFixed(1)} ${next.toFixed(1)}`;
      y = next;
    }
    return d && `${d}H300`;
  };
  $("spark").replaceChildren(svg("path", { d: line("flight"), class: "s-confirmed" }), svg("path", { d: line("queue"), class: "s-reserved" }));
}
function drawEvents() {
  const at = now();
  const rows = seen.events.slice(-100).reverse().map((e) => {
    const when = el("time", "quiet", ago(at - seconds(e.at)));
    when.title = new Date(seen.status.epoch_us / 1000 + seconds(e.at) * 1000).toLocaleString();
    return el("li", "", when, el("span", e.weight, e.text));
  });
  $("events").replaceChildren(...(rows.length ? rows : [el("li", "", el("span", "quiet", "Nothing yet.")) ]));
}
const LANE = {
  starting: "reserved", waking: "reserved", ready: "confirmed", adopted: "reserved", awake: "confirmed", spared: "confirmed", falling_asleep: "asleep",
  asleep: "asleep", stopping: "releasing", yielding: "releasing", stopped: null, failed: "quarantined", planned_again: null,
};
function drawLanes() {
  if (!seen.status) return;
  const at = now(), first = Math.min(at, ...seen.events.map((e) => seconds(e.at)));
  const span = Math.min(LANES, Math.max(60, (at - first) * 1.05));
  $("lanes-span").textContent = `(the last ${time(span)})`;
  const names = seen.status.models.map((m) => m.name).filter((n) => seen.events.some((e) => e.model === n));
  const width = Math.max(320, $("lanes").clientWidth || 600), label = Math.min(180, width / 3), height = 22;
  $("lanes").setAttribute("viewBox", `0 0 ${width} ${Math.max(1, names.length) * height}`);
  $("lanes").setAttribute("height", String(Math.max(1, names.length) * height));
  const x = (t) => label + Math.max(0, 1 - (at - t) / span) * (width - label);
  const nodes = [];
  names.forEach((name, row) => {
    const y = row * height;
    const short = name.length > label / 7 ? `…${name.slice(-Math.floor(label / 7))}` : name;
    nodes.push(svg("text", { x: 0, y: y + 14 }, short));
    let open = null;
    const close = (t) => {
      if (!open || t < at - span) return;
      const from = x(open.at), rect = svg("rect", { x: from, y: y + 3, width: Math.max(2, x(t) - from), height: height - 7, rx: 3, class: `s-${open.kind}` });
      rect.append(svg("title", {}, open.text));
      nodes.push(rect);
    };
    for (const e of seen.events.filter((e) => e.model === name && e.kind in LANE)) {
      close(seconds(e.at));
      open = LANE[e.kind] && { at: seconds(e.at), kind: LANE[e.kind], text: e.text };
    }
    close(at);
  });
  $("lanes").replaceChildren(...nodes);
}

// ---- logs, reasons, chat ----
let reading = null;
async function openLog(model) {
  reading?.abort();
  const mine = reading = new AbortController();
  $("log-title").textContent = `Log of ${model}`;
  $("log-text").textContent = "";
  if (!$("log").open) $("log").showModal();
  try {
    const answer = await ask(path(model, "log"), { signal: mine.signal });
    let ended = false;
    for await (const { name, data } of events(answer)) {
      if (name === "end") ended = true;
      if (name !== "line") continue;
      const text = $("log-text"), end = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
      text.append(`${JSON.parse(data)}\n`);
      while (text.childNodes.length > 2000) text.firstChild.remove();
      if (end) text.scrollTop = text.scrollHeight;
    }
    // A daemon that leaves, or a key that was taken back, ends the stream and not the container.
    $("log-text").append(ended ? "— the container has ended —\n" : "— the connection has ended —\n");
  } catch (error) {
    if (!mine.signal.aborted) $("log-text").append(`${error.message}\n`);
  }
}
$("log-close").addEventListener("click", () => $("log").close());
$("log").addEventListener("close", () => reading?.abort());
function openWhy(model) {
  $("why").dataset.model = model;
  drawWhy();
  $("why").showModal();
}
function words(v) {
  if (v === null || v === undefined) return "";
  if (typeof v === "string") return v.replaceAll("_", " ");
  return Object.entries(v).map(([k, x]) => typeof x === "object" ? `${k.replaceAll("_", " ")} (${words(x)})` : `${k.replaceAll("_", " ")}: ${/bytes|need|free|short|missing|by/.test(k) && typeof x === "number" ? bytes(x) : x}`).join(", ");
}
function judged(v) {
  if (v.spared) return `stays: ${v.spared}`;
  if (!v.chosen) return "could leave, and need not";
  if (v.asleep) return `goes to sleep (level ${v.asleep})`;
  return v.stopped_because ? `is stopped: ${v.stopped_because}` : "is stopped";
}
function drawWhy() {
  const m = seen.status.models.find((m) => m.name === $("why").dataset.model);
  if (!m || !m.report) return;
  const r = m.report;
  $("why-title").textContent = `Why ${m.name} is where it is`;
  const table = (heads, rows) => el("table", "", el("tr", "", ...heads.map((h) => el("th", "", h))), ...rows.map((cells) => el("tr", "", ...cells.map((c) => el("td", "", c)))));
  $("why-text").replaceChildren(
    el("p", "", `Needs ${bytes(r.need.bytes)} on each device (${words(r.need.source)}). Now ${m.phase}.`),
    table(["Device", "Free", "Reserved", "Others", "Judgement"], r.devices.map((d) => [d.gpu, bytes(d.free), bytes(d.reserved), bytes(d.foreign), words(d.verdict)])),
    r.victims.length ? table(["In the way", "Judgement"], r.victims.map((v) => [v.instance, judged(v)])) : el("p", "quiet", "Nobody was in the way."));
}
$("why-close").addEventListener("click", () => $("why").close());
let answering = null;
$("chat").addEventListener("submit", async (event) => {
  event.preventDefault();
  const content = $("chat-text").value.trim();
  if (!content || answering) return;
  answering = new AbortController();
  $("chat-answer").textContent = "";
  $("chat-send").hidden = true; $("chat-stop").hidden = false;
  const began = performance.now();
  let first = null, chunks = 0, piece = null;
  $("chat-note").textContent = "waiting";
  try {
    const body = JSON.stringify({ model: $("chat-model").value, stream: true, messages: [{ role: "user", content }] });
    const headers = { "content-type": "application/json" };
    const answer = await ask("/v1/chat/completions", { method: "POST", headers, body, signal: answering.signal });
    for await (const { data } of events(answer)) {
      if (!data || data === "[DONE]") continue;
      const part = JSON.parse(data);
      if (part.error) throw new Error(part.error.message);
      // What it thinks before it answers has a name of its own, and each engine has its own name for it.
      const { content, reasoning_content, reasoning } = part.choices?.[0]?.delta ?? {};
      for (const [kind, text] of [["quiet", reasoning_content || reasoning], ["", content]]) {
        if (!text) continue;
        first ??= performance.now() - began;
        chunks += 1;
        if (piece?.kind !== kind) {
          if (piece) $("chat-answer").append("\n\n");
          piece = { kind, at: el("span", kind) };
          $("chat-answer").append(piece.at);
        }
        piece.at.append(text);
      }
      $("chat-answer").scrollTop = $("chat-answer").scrollHeight;
    }
    const all = performance.now() - began;
    const rate = chunks > 1 ? `, ${(chunks / ((all - first) / 1000)).toFixed(1)} chunks/s` : "";
    $("chat-note").textContent = first === null ? "no text came" : `first text after ${took(first / 1000)}, all after ${took(all / 1000)}${rate}`;
  } catch (error) {
    $("chat-note").textContent = answering.signal.aborted ? "stopped" : error.message;
  }
  answering = null;
  $("chat-send").hidden = false; $("chat-stop").hidden = true;
});
$("chat-stop").addEventListener("click", () => answering?.abort());
setInterval(() => { if (seen.live) { drawEvents(); drawLanes(); if (seen.status.models.some((m) => m.progress)) draw(); } }, 1000);
follow();
