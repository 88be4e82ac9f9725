// The chat page: streams answers from /v1/chat/completions. Whatever comes from the model goes to the page as text alone.

import { call, events, problem } from "./server.js";

const element = (id) => document.getElementById(id);

let model = null;
let messages = []; // what was said so far, both sides
let running = null; // the AbortController of the answer that is being written

function addTurn(kind) {
  const turn = element("turn").content.cloneNode(true).firstElementChild;
  turn.classList.add(kind);
  element("conversation").append(turn);
  return turn;
}

// Text of the same kind goes on in the same span.
function addText(turn, text, isDrafted) {
  const box = turn.querySelector(".text");
  const last = box.lastElementChild;
  if (last && last.classList.contains("drafted") === isDrafted) {
    last.textContent += text;
    return;
  }
  const span = document.createElement("span");
  span.classList.toggle("drafted", isDrafted);
  span.textContent = text;
  box.append(span);
}

function showFigures(turn, text) {
  const figures = turn.querySelector(".figures");
  figures.textContent = text;
  figures.hidden = false;
}

function figuresOf({ tokens, drafted, startedAt, firstAt, lastAt }) {
  if (firstAt === null) return "no tokens";
  const parts = [`${tokens} ${tokens === 1 ? "token" : "tokens"}`];
  if (tokens > 1 && lastAt > firstAt) parts.push(`${((tokens - 1) / ((lastAt - firstAt) / 1000)).toFixed(1)} tokens/s`);
  parts.push(`first after ${Math.round(firstAt - startedAt)} ms`);
  if (drafted) parts.push(`${drafted} drafted`);
  return parts.join(" \u00b7 ");
}

function requestBody() {
  const number = (id) => (element(id).value === "" ? undefined : Number(element(id).value));
  const system = element("system").value.trim();
  return {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    temperature: number("temperature"),
    max_tokens: number("max-tokens"),
    seed: number("seed"),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    enginewright: { drafted: true },
  };
}

async function stream(turn, told) {
  const options = { method: "POST", body: JSON.stringify(requestBody()), signal: running.signal };
  const response = await call("v1/chat/completions", options);
  if (!response.ok) throw new Error(await problem(response));
  for await (const event of events(response)) {
    told.tokens = event.usage.completion_tokens;
    const choice = event.choices[0];
    if (!choice?.enginewright) continue; // the opening and the counts
    told.lastAt = performance.now();
    told.firstAt ??= told.lastAt;
    told.drafted += choice.enginewright.drafted;
    told.text += choice.delta.content ?? "";
    addText(turn, choice.delta.content ?? "", choice.enginewright.drafted);
    showFigures(turn, figuresOf(told));
    follow();
  }
}

async function answer() {
  const said = messages; // a new chat has a list of its own
  const turn = addTurn("theirs");
  turn.classList.add("waiting");
  const told = { text: "", tokens: 0, drafted: 0, startedAt: performance.now(), firstAt: null, lastAt: null };
  running = new AbortController();
  setBusy(true);
  follow(true);
  try {
    await stream(turn, told);
  } catch (error) {
    if (error.name === "AbortError") showFigures(turn, `${figuresOf(told)} \u00b7 stopped`);
    else fail(turn, error);
  }
  turn.classList.remove("waiting");
  running = null;
  setBusy(false);
  if (told.text) said.push({ role: "assistant", content: told.text });
  else said.pop(); // an unanswered question is asked again, not kept
}

function fail(turn, error) {
  turn.classList.add("failed");
  showFigures(turn, error instanceof TypeError ? "the server cannot be reached" : error.message);
}

function setBusy(isBusy) {
  element("composer").classList.toggle("busy", isBusy);
  element("send").setAttribute("aria-label", isBusy ? "Stop" : "Send");
  element("new-chat").hidden = messages.length === 0;
  updateSend();
}

function updateSend() {
  element("send").disabled = running === null && element("prompt").value.trim() === "";
}

// Keeps the end in view, unless the reader has scrolled away from it.
function follow(always = false) {
  const box = element("conversation");
  if (always || box.scrollHeight - box.scrollTop - box.clientHeight < 80) box.scrollTop = box.scrollHeight;
}

async function connect() {
  const state = element("state");
  try {
    const response = await call("v1/models");
    if (!response.ok) throw new Error(await problem(response));
    model = (await response.json()).data[0].id;
    element("model").textContent = model;
    document.title = `${model} \u00b7 Enginewright`;
    state.classList.add("ready");
    state.setAttribute("aria-label", "ready");
  } catch (error) {
    state.classList.add("down");
    state.setAttribute("aria-label", "not reachable");
    fail(addTurn("theirs"), error);
  }
}

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = element("prompt").value.trim();
  if (!text) return;
  element("welcome").hidden = true;
  element("prompt").value = "";
  addText(addTurn("mine"), text, false);
  messages.push({ role: "user", content: text });
  answer();
});

element("prompt").addEventListener("input", updateSend);
element("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) element("composer").requestSubmit();
});

element("new-chat").addEventListener("click", () => {
  running?.abort();
  messages = [];
  document.querySelectorAll(".turn").forEach((turn) => turn.remove());
  element("welcome").hidden = false;
  element("new-chat").hidden = true;
  element("prompt").focus();
});

element("show-settings").addEventListener("click", () => {
  const settings = element("settings");
  settings.hidden = !settings.hidden;
  element("show-settings").setAttribute("aria-expanded", String(!settings.hidden));
});
element("settings").addEventListener("submit", (event) => event.preventDefault());

connect();
