// Compose: words, strength and seeds; full-quality images with what can be read in them; history and comparison.
import { get, post, queued } from "./api.js";
import { keyOf, orders } from "./creature.js";
import { restore, thumbOf } from "./files.js";
import { composition, onChange, pieces, state, update } from "./state.js";
import { attempt, button, capitalised, copy, dialog, duration, h, iconButton, plural, toast } from "./ui.js";

let working = null; // the drawing in progress, which goes on when the screen is left

export async function show(screen, model, signal) {
  const sentence = h("div", { class: "card sentence", role: "group", "aria-label": "What is drawn, in words" });
  const results = h("div", { class: "results", id: "results" });
  const status = h("div", { class: "status", role: "status", id: "status" });
  const history = h("section", { class: "history", "aria-label": "History" });
  const page = { model, screen, results, status, history, signal };
  screen.append(
    h("div", { class: "head" },
      h("div", {}, h("h1", {}, `Your ${model.noun}, drawn`), h("p", { class: "lead" }, "Add words, adjust strengths, and see which parts came out.")),
      h("div", { class: "row" }, button("Copy", () => copyMenu(model), { icon: "copy", id: "copy" }))),
    sentence, settings(model), status, results, history,
  );
  const redraw = () => drawSentence(sentence, model);
  redraw();
  drawStatus(page);
  drawHistory(page);
  const last = state.history[0];
  if (last && !working) showResults(page, last);
  onChange((why) => (why === "history" ? drawHistory(page) : redraw()), signal);
  const make = () => {
    orders.make = false;
    draw(page);
  };
  window.addEventListener("make", make, { signal });
  if (working) working.show(page);
  else if (orders.make) make();
}

function drawSentence(place, model) {
  if (place.contains(document.activeElement)) return; // somebody is writing in it
  const words = (key, value, label, hint) =>
    h("input", { type: "text", value, "aria-label": label, placeholder: hint, maxlength: 200, id: `words-${key}`, onchange: (event) => update({ [key]: event.target.value }) });
  const token = (piece, kind = "") => h("span", { class: `token ${kind}`, style: { "--c": model.parts[piece.part].color } }, model.parts[piece.part].name, piece.weight !== 1 && !kind ? ` ${piece.weight.toFixed(1)}×` : "");
  const list = pieces().sort((a, b) => a.part - b.part);
  place.replaceChildren(
    words("before", state.before ?? model.before, "Words before the parts", "a photo of a"),
    ...(list.length ? list.map((piece) => token(piece)) : [h("span", { class: "quiet" }, "no parts chosen yet")]),
    words("after", state.after ?? model.after, "Words after the parts", `${model.noun} in the snow`),
    h("span", { class: "grow" }),
    ...state.not.map((piece) => h("button", { type: "button", class: "token not", style: { "--c": model.parts[piece.part].color, border: 0 }, title: "Remove", "aria-label": `Do not avoid ${model.parts[piece.part].name} ${piece.code} any more`, onclick: () => update({ not: state.not.filter((other) => other !== piece) }) }, model.parts[piece.part].name)),
    button("Without…", () => chooseNot(model), { class: "small", id: "without" }),
  );
}

/** Parts that the image should keep away from. */
function chooseNot(model) {
  const strips = model.parts.slice(1).map((part) =>
    h("div", {}, h("h3", { class: "chip", style: { "--c": part.color, margin: "12px 0 4px" } }, h("i"), capitalised(part.name)),
      h("div", { class: "strip", style: { "--c": part.color } }, part.variants.filter(({ trained }) => trained).map(({ code }) => {
        const there = () => state.not.find((piece) => piece.part === part.index && piece.code === code);
        const choice = h("button", { type: "button", "aria-label": `${part.name} ${code}`, "aria-pressed": String(Boolean(there())), onclick: () => {
          update({ not: there() ? state.not.filter((piece) => piece !== there()) : [...state.not, { part: part.index, code, weight: 1 }] });
          choice.setAttribute("aria-pressed", String(Boolean(there())));
        } }, h("img", { src: thumbOf({ part: part.index, code }), alt: "" }));
        return choice;
      }))));
  dialog("Keep away from", h("p", { class: "quiet" }, "The image avoids what you mark here."), ...strips);
}

function settings(model) {
  const range = (label, key, { least, most, step, standard, say }) => {
    const output = h("output", {}, say(state[key] ?? standard));
    return h("label", { class: "field" }, h("span", {}, label, output),
      h("input", { type: "range", min: least, max: most, step, value: state[key] ?? standard, id: `set-${key}`, oninput: (event) => (output.textContent = say(Number(event.target.value))), onchange: (event) => update({ [key]: Number(event.target.value) }, "settings") }));
  };
  const seed = h("input", { type: "number", min: 0, max: 2147483647, value: state.seed, id: "set-seed", "aria-label": "Seed: the same number gives the same image", style: { width: "100%" }, onchange: (event) => update({ seed: Math.min(Math.max(Math.round(Number(event.target.value)) || 0, 0), 2147483647) }) });
  return h("div", { class: "card settings" },
    range("Images", "count", { least: 1, most: model.most_images, step: 1, standard: 4, say: String }),
    h("div", { class: "field" }, h("span", {}, "Seed"), h("div", { class: "row", style: { gap: "4px", "flex-wrap": "nowrap" } }, seed, iconButton("dice", "Another seed", () => ((seed.value = Math.floor(Math.random() * 100000)), update({ seed: Number(seed.value) }))))),
    range("Quality", "steps", { least: 4, most: Math.max(50, model.steps), step: 1, standard: model.steps, say: (value) => plural(value, "step") }),
    range("Closeness to the parts", "guidance", { least: 1, most: 15, step: 0.5, standard: model.guidance, say: (value) => value.toFixed(1) }));
}

function drawStatus({ status }) {
  if (working) return;
  status.replaceChildren();
  status.hidden = true;
}

async function draw(page) {
  if (!pieces().length) return toast("Choose a part first.");
  if (working) return toast("The last images are still being drawn.");
  const { model } = page;
  const asked = { run: model.name, composition: composition(), seeds: Array.from({ length: state.count }, (_, at) => state.seed + at), steps: state.steps, guidance: state.guidance };
  const stop = new AbortController();
  working = { page, show: (next) => ((working.page = next), place()) };
  const bar = h("i", { style: { width: "0%" } }), said = h("span", {}, "Starting…");
  let timer;
  const place = () => {
    const { status, results } = working.page;
    status.hidden = false;
    status.replaceChildren(said, h("div", { class: "progress" }, bar), button("Stop", () => stop.abort(), { class: "small" }));
    results.replaceChildren(...asked.seeds.map(() => h("div", { class: "card result" }, h("div", { class: "picture waiting" }, h("i", { class: "spin" })))));
  };
  place();
  try {
    const drawn = await queued("draw", asked, {
      signal: stop.signal,
      waiting: (rank) => (said.textContent = rank > 0 ? `${plural(rank, "person", "people")} before you` : "You are next…"),
      started: (eta) => {
        const begun = performance.now(), expected = (model.seconds_per_image || eta || 4) * asked.seeds.length;
        clearInterval(timer);
        const tick = () => {
          const gone = (performance.now() - begun) / 1000;
          bar.style.width = `${Math.min(96, (100 * gone) / (expected + gone * 0.15))}%`;
          said.textContent = `Drawing ${plural(asked.seeds.length, "image")}…${expected - gone > 3 ? ` about ${duration(expected - gone)}` : ""}`;
        };
        tick();
        timer = setInterval(tick, 250);
        working.begun = begun;
      },
    });
    model.seconds_per_image = (performance.now() - working.begun) / 1000 / asked.seeds.length;
    const entry = { id: drawn.results[0].id, time: Date.now(), results: drawn.results, restore: drawn.restore, thumb: drawn.results[0].url, prompt: drawn.prompt, key: keyOf(model, asked.composition, asked.seeds[0]) };
    update({ history: [entry, ...state.history].slice(0, 30) }, "history");
    const { page: shown } = working;
    working = null;
    clearInterval(timer);
    if (!shown.signal.aborted) showResults(shown, entry);
    drawStatus(shown);
  } catch (error) {
    const { page: shown } = working;
    working = null;
    clearInterval(timer);
    drawStatus(shown);
    if (state.history[0]) showResults(shown, state.history[0]);
    else shown.results.replaceChildren();
    toast(error.name === "AbortError" ? "Stopped." : error.message, { bad: error.name !== "AbortError" });
  }
}

function showResults(page, entry) {
  page.results.replaceChildren(...entry.results.map((result) => card(page, entry, result)));
  page.results.dataset.prompt = entry.prompt;
}

function card({ model }, entry, result) {
  const look = () => dialog(`Seed ${result.seed}`, h("img", { src: result.url, alt: alt(model, result), style: { width: "min(72vh, 100%)", margin: "0 auto", "border-radius": "12px" } }));
  return h("article", { class: "card result", "aria-label": `Image with seed ${result.seed}`, data: { seed: result.seed, id: result.id } },
    h("button", { type: "button", class: "picture", "aria-label": "Larger", onclick: look }, h("img", { src: result.url, alt: alt(model, result) })),
    h("ul", { class: "reads", "aria-label": "Which parts came out" }, result.reads.map((read) => h("li", {}, readChip(model, result, read)))),
    h("footer", {}, h("span", {}, `Seed ${result.seed}`),
      h("span", { class: "row" },
        iconButton("eye", "Where each part came from", () => attention(model, result), { class: "tiny" }),
        iconButton("compare", "Compare with another image", () => compare(result), { class: "tiny" }),
        h("a", { class: "icon tiny", href: `${result.url}?download`, download: `partcraft-${result.seed}.png`, "aria-label": "Save the image, with its composition inside", title: "Save" }, iconButton("download", "Save").firstChild))));
}

const alt = (model, { reads }) => `A ${model.noun}: ${reads.map(({ part, matches }) => `${model.parts[part].name} ${matches ? "as asked" : "not as asked"}`).join(", ")}`;

function readChip(model, result, read) {
  const part = model.parts[read.part];
  const said = read.matches ? "came out" : read.found === null ? "is missing" : "came out differently";
  const cosine = read.cosine === null ? "" : `, likeness ${read.cosine.toFixed(2)}`;
  return h("button", {
    type: "button", class: "read", style: { "--c": part.color }, title: `The ${part.name} ${said}${cosine}`, "aria-label": `The ${part.name} ${said}${cosine}`,
    data: { part: part.index, asked: read.asked.join(" "), found: read.found ?? "", matches: String(read.matches) },
    onclick: () => sideBySide(model, result, read),
  }, h("img", { src: thumbOf({ part: part.index, code: read.asked[0] }), alt: "" }), h("span", { class: "part" }, part.name), h("span", { class: read.matches ? "yes" : "no", "aria-hidden": "true" }, read.matches ? "✓" : "✗"));
}

/** What was asked for beside what came out. */
function sideBySide(model, result, read) {
  const part = model.parts[read.part];
  const figure = (src, caption) => h("figure", {}, h("img", { src, alt: caption }), caption);
  dialog(`${capitalised(part.name)}: ${read.matches ? "as asked" : "not as asked"}`,
    h("div", { class: "maps", style: { "min-width": "min(480px, 80vw)" } },
      figure(thumbOf({ part: part.index, code: read.asked[0] }), "what you picked"),
      figure(result.url, "the image"),
      read.found !== null && !read.matches ? figure(thumbOf({ part: part.index, code: read.found }), "what it looks most like") : null),
    h("p", { class: "quiet", style: { "margin-top": "12px" } },
      read.cosine === null ? `No ${part.name} can be seen in this image.` : `Likeness to your pick: ${read.cosine.toFixed(2)} of 1. ${read.matches ? "No other kind is nearer." : "Another kind is nearer; a higher strength or another seed may help."}`));
}

async function attention(model, result) {
  const box = dialog("Where each part was drawn", h("p", { class: "loading", role: "status" }, "Looking…"));
  const found = await attempt(() => queued("attention", { id: result.id }));
  box.querySelector(".loading")?.remove();
  if (!found) return box.close();
  box.append(h("div", { class: "maps" }, found.maps.map(({ part, image }) => h("figure", {}, h("img", { src: image, alt: `Where the ${model.parts[part].name} was drawn` }), h("span", { class: "chip", style: { "--c": model.parts[part].color } }, h("i"), capitalised(model.parts[part].name))))));
}

function drawHistory({ history, model }) {
  history.hidden = !state.history.length;
  history.replaceChildren(
    h("h2", {}, "History"), h("p", { class: "quiet" }, "Click to bring a composition back."),
    h("div", { class: "strip", style: { "margin-top": "8px" } }, state.history.map((entry) =>
      h("button", { type: "button", "aria-label": `Bring back the composition of ${new Date(entry.time).toLocaleTimeString()}`, title: entry.prompt, onclick: () => attempt(async () => restore(await get(`/api/results/${entry.id}`))) },
        h("img", { src: entry.thumb, alt: "", loading: "lazy", onerror: (event) => event.target.closest("button").remove() })))));
}

/** Two images under one another, with a slider between them. */
function compare(result) {
  const others = state.history.flatMap(({ results }) => results).filter(({ id }) => id !== result.id);
  if (!others.length) return toast("There is nothing to compare it with yet.");
  const under = h("img", { src: others[0].url, alt: "The other image" });
  const frame = h("div", { class: "compare" }, under, h("img", { class: "after", src: result.url, alt: "This image" }), h("div", { class: "bar" }));
  const slider = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "How much of each image is shown", oninput: (event) => frame.style.setProperty("--at", `${event.target.value}%`) });
  const move = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = frame.getBoundingClientRect();
    slider.value = Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width));
    frame.style.setProperty("--at", `${slider.value}%`);
  };
  frame.addEventListener("pointerdown", move);
  frame.addEventListener("pointermove", move);
  const strip = h("div", { class: "strip" }, others.slice(0, 40).map((other, at) => h("button", {
    type: "button", "aria-label": `Compare with seed ${other.seed}`, "aria-pressed": String(at === 0),
    onclick: (event) => {
      under.src = other.url;
      for (const choice of strip.children) choice.setAttribute("aria-pressed", String(choice === event.currentTarget));
    },
  }, h("img", { src: other.url, alt: "", loading: "lazy" }))));
  dialog("Compare", frame, slider, h("p", { class: "quiet" }, "Left: the image chosen below. Right: this one."), strip);
}

async function copyMenu(model) {
  if (!pieces().length) return toast("Choose a part first.");
  const said = await attempt(() => post(`${model.base}/describe`, { composition: composition(), seeds: Array.from({ length: state.count }, (_, at) => state.seed + at), steps: state.steps, guidance: state.guidance }));
  if (!said) return;
  const row = (what, text) => h("div", { style: { "margin-top": "14px" } }, h("div", { class: "row", style: { "justify-content": "space-between", "margin-bottom": "6px" } }, h("h3", {}, what), button("Copy", () => copy(text, what), { class: "small", icon: "copy" })), h("pre", {}, text));
  dialog("The same image elsewhere", row("Prompt", said.prompt), row("Command", said.command), row("Python", said.python));
}
