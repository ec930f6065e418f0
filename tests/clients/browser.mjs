// The dashboard, as its visitor uses it. Every wait is for something that the page shows.
import assert from "node:assert/strict";
import puppeteer from "puppeteer-core";

const { BASE, KEY, ADMIN, BROWSER, SHOTS } = process.env;
const model = "org/fake";

const browser = await puppeteer.launch({
  executablePath: BROWSER, headless: true,
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"],
});
const page = await browser.newPage();
const complaints = [], elsewhere = [];
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("console", (message) => {
  // A refused key and a dead endpoint are part of the play; the browser reports the status by itself.
  if (message.type() === "error" && !/status of (40[139]|503)/.test(message.text())) complaints.push(message.text());
});
page.on("request", (request) => {
  if (!request.url().startsWith(BASE) && !request.url().startsWith("data:")) elsewhere.push(request.url());
});
const text = (selector) => page.$eval(selector, (node) => node.textContent);
const until = (what, ...args) => page.waitForFunction(what, { timeout: 60_000 }, ...args);
const shot = async (name) => {
  if (!SHOTS) return;
  await page.evaluate(() => { document.querySelector("#toast").hidden = true; });
  await page.screenshot({ path: `${SHOTS}/${name}.png`, fullPage: true });
};
const use = async (key) => {
  await page.type("#key-text", key);
  await page.click("#key-form button.main");
};
const row = `[data-model="${model}"]`;
const phase = (want, of = row) => until((row, want) => document.querySelector(`${row} .pill`)?.textContent === want, of, want);
const happened = (text) => until((text) => [...document.querySelectorAll("#events li")].some((li) => li.textContent.includes(text)), text);
const load = async (name) => {
  const other = `[data-model="${name}"]`;
  await page.click(`${other} [data-act="load"]`);
  await phase("ready", other);
};

await page.setViewport({ width: 1280, height: 900 });
await page.goto(`${BASE}/ui`);

// Nothing without a key, and a wrong one is told to be wrong.
await page.waitForSelector("#key[open]");
await use("sk-wrong");
await until(() => document.querySelector("#key-note").textContent.includes("not known"));
assert.equal(await page.$(row), null);

// A client's key shows all and changes nothing.
await use(KEY);
await page.waitForSelector(row);
assert.match(await text("#read-only"), /admin = true/);
assert.equal(await page.$eval(`${row} [data-act="load"]`, (b) => b.disabled), true);
const forced = await page.evaluate(async (key) => {
  const headers = { authorization: `Bearer ${key}` };
  return (await fetch("/api/v1/models/org/fake/load", { method: "POST", headers })).status;
}, KEY);
assert.equal(forced, 403);

// An administrator's loads by a click.
await page.click("#key-open");
await Promise.all([page.waitForNavigation(), use(ADMIN)]);
await page.waitForSelector(`${row} [data-act="load"]:not(:disabled)`);
await page.click(`${row} [data-act="load"]`);
await phase("loading");
await page.waitForSelector(`${row} progress`);
await phase("ready");
await happened(`${model}: ready after`);
assert.match(await page.$eval("#gpus .bar", (bar) => bar.getAttribute("aria-label")), /confirmed 1\.\d GiB/);
assert.ok(await page.$("#lanes rect.s-confirmed"));

// Another beside it, and a third, for which one has to leave: which one and why is told.
await load("org/second");
await load("org/third");
await happened("(evicted)");
await phase("stopped", '[data-model="org/second"]');
await phase("ready");

// What runs elsewhere is told apart, and why it is not well.
const away = '[data-external="far/away"]';
await until((row) => document.querySelector(`${row} .pill`)?.textContent === "unwell", away);
assert.match(await text(away), /http:\/\/127\.0\.0\.1:\d+.*cannot be reached/s);
const nowhere = await page.evaluate(async (key) => {
  const headers = { authorization: `Bearer ${key}` };
  const answer = await fetch("/api/v1/models/far/away/load", { method: "POST", headers });
  return [answer.status, (await answer.json()).error.message];
}, ADMIN);
assert.equal(nowhere[0], 409);
assert.match(nowhere[1], /far\/away runs elsewhere, at http/);
await page.select("#chat-model", "far/away");
await page.type("#chat-text", "Anybody?");
await page.click("#chat-send");
await until(() => /run elsewhere, and not well/.test(document.querySelector("#chat-note").textContent));
await page.$eval("#chat-text", (area) => { area.value = ""; });

// It answers.
await page.select("#chat-model", model);
await page.type("#chat-text", "Say ten words.");
await page.click("#chat-send");
await until(() => /all after/.test(document.querySelector("#chat-note").textContent));
assert.ok((await text("#chat-answer")).trim().length > 10);
await until((row) => /used/.test(document.querySelector(row).textContent), row);

// Its log is text, whatever it holds; the planner's reasons are there.
await page.click(`${row} [data-act="log"]`);
await until(() => document.querySelector("#log-text").textContent.includes("container has ended"));
assert.match(await text("#log-text"), /^<b>.*<\/b> listens/);
assert.equal(await page.$("#log-text b"), null);
await page.click("#log-close");
await page.click(`${row} [data-act="why"]`);
await until(() => /Needs 1\.0 GiB/.test(document.querySelector("#why-text").textContent));
await page.click("#why-close");

// Pictures, light and dark, wide and narrow; nothing sticks out on a phone.
await shot("dashboard");
await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
await shot("dashboard-dark");
await page.setViewport({ width: 390, height: 844 });
await until(() => document.documentElement.scrollWidth <= window.innerWidth);
await shot("dashboard-phone");
await page.setViewport({ width: 1280, height: 900 });

// And is unloaded.
await page.waitForSelector(`${row} [data-act="unload"]`);
await page.click(`${row} [data-act="unload"]`);
await phase("stopped");

assert.deepEqual(complaints, []);
assert.deepEqual(elsewhere, []);
await browser.close();
