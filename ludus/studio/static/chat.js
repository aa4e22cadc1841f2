// The chat page: one conversation, sent whole each time and streamed back. Text goes in by textContent only, so that
// nothing a model or a person says can become markup.
"use strict";

const at = (id) => document.getElementById(id);
const log = at("log"), text = at("text"), send = at("send"), model = at("model");
let messages = [], answering = null;

function show(kind, content) {
  const line = document.createElement("div");
  line.className = kind;
  line.textContent = content;
  follow(() => log.append(line));
  return line;
}

// Change the page, and stay at its end if that is what was in view.
function follow(change) {
  const below = innerHeight + scrollY >= document.body.scrollHeight - 40;
  change();
  if (below) scrollTo(0, document.body.scrollHeight);
}

function note(content) { show("note", content); }

async function listModels() {
  const response = await fetch("/v1/models");
  const names = (await response.json()).data.map((each) => each.id);
  const wanted = new URLSearchParams(location.search).get("model") || names[0];
  model.replaceChildren(...names.map((name) => new Option(name, name, false, name === wanted)));
  if (!names.length) note("There is no model yet. Train one, as with: ludus run quickstart");
  about();
}

function about() {
  if (model.value.endsWith("/pretrain"))
    note("This model was only pretrained: it continues text, and was never taught to answer.");
}

// Yield the objects of a stream of server-sent events, however its bytes are cut.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (waiting + value).split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function request() {
  const system = at("system").value.trim();
  const opening = system ? [{ role: "system", content: system }] : [];
  const temperature = Number(at("temperature").value) || 0;
  return { model: model.value, messages: [...opening, ...messages], temperature, stream: true, trim: true };
}

async function answer(said) {
  answering = new AbortController();
  send.textContent = "Stop";
  const history = messages;
  history.push({ role: "user", content: said });
  show("user", said);
  scrollTo(0, document.body.scrollHeight);
  const line = show("assistant", "");
  line.classList.add("growing");
  let whole = "", ending = "", dropped = 0;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request()),
      signal: answering.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response.body)) {
      dropped = event.ludus.dropped_turns;
      whole += event.choices[0].delta.content || "";
      ending = event.choices[0].finish_reason || ending;
      follow(() => { line.textContent = whole; });
    }
    if (ending === "length") note("Cut off: as long as an answer may be here, or the context is full.");
  } catch (problem) {
    note(problem.name === "AbortError" ? "Stopped." : problem.message);
    if (problem.name !== "AbortError" && !text.value) text.value = said;
  }
  line.classList.remove("growing");
  if (history === messages) keep(line, whole, dropped);
  answering = null;
  send.textContent = "Send";
}

// Take the answer into the history; what had to be left out of it to fit stays out.
function keep(line, whole, dropped) {
  if (dropped) {
    const starts = messages.flatMap((each, index) => (each.role === "user" ? [index] : []));
    messages = messages.slice(starts[dropped]);
    note(`${dropped === 1 ? "The oldest turn was" : `The ${dropped} oldest turns were`} left out, to fit the model's context.`);
  }
  if (whole.trim()) {
    messages.push({ role: "assistant", content: whole });
    return;
  }
  messages.pop();
  line.remove();
  note("No answer; this turn is left out of the history.");
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) {
    answering.abort();
    return;
  }
  const said = text.value;
  if (!said.trim() || !model.value) return;
  text.value = "";
  answer(said);
});

text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!answering) at("form").requestSubmit();
  }
});

at("reset").addEventListener("click", () => {
  if (answering) answering.abort();
  messages = [];
  log.replaceChildren();
  about();
});

model.addEventListener("change", about);
listModels();
