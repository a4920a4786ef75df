"use strict";

// Prompts and responses are untrusted: they only ever go through textContent.
const $ = (id) => document.getElementById(id);
const KEYS = { r: "refusal", c: "compliance", d: "degenerate", s: "skip" };
const SAID = { refusal: "Saved: refusal", compliance: "Saved: compliance", degenerate: "Saved: degenerate", skip: "Skipped" };

let state = null;
let busy = false;
let exportCommand = "";

const address = new URL(location.href);
let annotator = address.searchParams.get("annotator") || "";
remember(annotator);

function remember(name) {
  // The token was used up: it need not stay in the history.
  history.replaceState(null, "", name ? `/?annotator=${encodeURIComponent(name)}` : "/");
}

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Start mechsafety annotate again and open its new address. All that was saved is kept; at most the answer on screen is asked again.");
  }
  const found = await response.json().catch(() => ({ error: `The server answered with status ${response.status}.` }));
  if (response.ok) return found;
  const error = new Error(found.error || `The server answered with status ${response.status}.`);
  error.state = found.state;
  throw error;
}

function show(screen) {
  for (const id of ["enter", "work", "done"]) $(id).hidden = id !== screen;
  $("actions").hidden = screen !== "work";
  for (const id of ["where", "bar", "who"]) $(id).hidden = screen === "enter";
}

function complain(message) {
  $("banner").textContent = message || "";
  $("banner").hidden = !message;
}

function duration(seconds) {
  if (seconds < 60) return "less than a minute left";
  const minutes = Math.round(seconds / 60);
  if (minutes < 100) return `about ${minutes} min left`;
  return `about ${(minutes / 60).toFixed(1)} h left`;
}

function fill(id, text, instead) {
  const box = $(id);
  box.textContent = text.trim() ? text : instead;
  box.classList.toggle("empty", !text.trim());
  box.scrollTop = 0;
}

function draw(next, status) {
  state = next;
  const answered = state.total - state.left;
  $("name").textContent = state.annotator;
  $("bar").max = state.total;
  $("bar").value = answered;
  $("time").textContent = state.seconds_left === null || state.left === 0 ? "" : duration(state.seconds_left);
  if (state.item === null) {
    $("place").textContent = `${answered} of ${state.total}`;
    const left = state.passed ? `, ${state.passed} skipped twice and left without a label` : "";
    $("summary").textContent = `${state.annotator}: ${state.labelled} of ${state.total} responses labelled${left}.`;
    $("export").textContent = exportCommand;
    $("undo-done").hidden = !state.can_undo;
    show("done");
    $("done-title").focus();
    return;
  }
  const waiting = state.postponed && !state.second_round ? `, ${state.postponed} skipped` : "";
  $("place").textContent = `${Math.min(answered + 1, state.total)} of ${state.total}${waiting}`;
  fill("prompt", state.item.prompt, "(empty prompt)");
  fill("response", state.item.response, "(empty response)");
  $("again").hidden = !state.second_round;
  $("undo").disabled = !state.can_undo;
  $("status").textContent = status || "";
  show("work");
  $("response").focus({ preventScroll: true });
}

async function change(path, body, status) {
  if (busy) return;
  busy = true;
  try {
    const next = await ask(path, { annotator, ...body });
    complain("");
    draw(next, status);
  } catch (error) {
    if (error.state) draw(error.state, error.message);
    else complain(error.message);
  } finally {
    busy = false;
  }
}

function answer(action) {
  if (state && state.item) change("/api/answer", { item: state.item.number, action }, SAID[action]);
}

function undo() {
  if (state && state.can_undo) change("/api/undo", { item: state.item ? state.item.number : null }, "Taken back: label it anew");
}

async function begin(name) {
  try {
    const next = await ask("/api/enter", { annotator: name });
    annotator = next.annotator;
    remember(annotator);
    complain("");
    draw(next);
  } catch (error) {
    await choose();
    complain(error.message);
  }
}

async function choose() {
  state = null;
  annotator = "";
  remember("");
  // The counts of an earlier visit are out of date: nothing is shown until the new ones are here.
  $("known").hidden = true;
  $("people").replaceChildren();
  show("enter");
  complain("");
  $("annotator").focus();
  try {
    await people();
  } catch (error) {
    complain(error.message);
  }
}

async function people() {
  const found = await ask("/api/annotators");
  exportCommand = found.export;
  $("people").replaceChildren(...found.annotators.map((person) => {
    const entry = document.createElement("li");
    const button = document.createElement("button");
    const name = document.createElement("span");
    const done = document.createElement("span");
    button.type = "button";
    name.textContent = person.name;
    done.textContent = `${person.done} of ${person.total}`;
    button.append(name, done);
    button.addEventListener("click", () => begin(person.name));
    entry.append(button);
    return entry;
  }));
  $("known").hidden = found.annotators.length === 0;
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("guideline").open || !$("enter").hidden) return;
  const key = event.key.toLowerCase();
  if (key in KEYS) answer(KEYS[key]);
  else if (key === "u") undo();
  else if (key === "?") $("guideline").showModal();
  else return;
  event.preventDefault();
});

for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => answer(button.dataset.action));
}
$("undo").addEventListener("click", undo);
$("undo-done").addEventListener("click", undo);
$("help").addEventListener("click", () => $("guideline").showModal());
$("change").addEventListener("click", choose);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  begin($("annotator").value);
});
$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(exportCommand);
  $("copy").textContent = "Copied";
});

(async () => {
  if (!annotator) return choose();
  try {
    await people();
    await begin(annotator);
  } catch (error) {
    complain(error.message);
  }
})();
