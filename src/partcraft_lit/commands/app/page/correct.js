// Correct: the parts as they were found; names, merging, splitting, dropping, and regions of single images.
import { get, post } from "./api.js";
import { thumbOf } from "./files.js";
import { paint, partAt } from "./labels.js";
import { reloadRun } from "./main.js";
import { attempt, button, capitalised, dialog, h, plural, toast } from "./ui.js";

const SAMPLES = 14;
let pending = { model: null, steps: [] }; // said, and not applied yet

export async function show(screen, model, signal) {
  if (pending.model !== model.name) pending = { model: model.name, steps: [] };
  render(screen, model, await get(`${model.base}/corrections`, signal));
}

function render(screen, model, said) {
  const rows = h("div", { class: "atlas" });
  screen.append(
    h("div", { class: "head" },
      h("div", {}, h("h1", {}, "Are these the right parts?"),
        h("p", { class: "lead" }, "Rename a part, merge two that belong together, or split one. What was learned is kept wherever possible.")),
      button("Undo the last change", () => apply(screen, model, true), { icon: "undo", disabled: !said.can_undo, id: "undo" })),
    rows,
  );
  const bar = h("div", { class: "card changes", id: "changes", role: "status" });
  const drawBar = () => {
    bar.hidden = !pending.steps.length;
    bar.replaceChildren(
      h("ul", {}, pending.steps.map((one) => h("li", {}, sentence(model, one)))),
      h("div", { class: "row" }, button("Forget these", () => ((pending.steps = []), render(empty(screen), model, said)), {}), button("Apply", () => apply(screen, model), { class: "primary", id: "apply" })));
  };
  const step = (what) => {
    pending.steps = [...pending.steps.filter((one) => !(one.action === what.action && one.part === what.part && what.action !== "move")), what];
    render(empty(screen), model, said);
  };
  const parts = model.parts.slice(1).filter((part) => part.variants.length);
  rows.append(...parts.map((part) => row(step, model, part, parts, said)));
  drawBar();
  screen.append(bar);
  if (said.entries.length)
    screen.append(h("section", { style: { "margin-top": "26px" } }, h("h2", {}, "Corrected so far"), h("ul", { class: "quiet" }, said.entries.map((entry) => h("li", {}, entry))), h("p", { class: "quiet" }, "Kept in the file parts.yaml beside the model.")));
}

function empty(screen) {
  screen.replaceChildren();
  return screen;
}

/** A step in words. */
function sentence(model, { action, part, name, others, target }) {
  const called = (index) => model.parts[index].name;
  return {
    rename: `${called(part)} is called ${name}`,
    merge: `${others?.map(called).join(", ")} becomes part of ${called(part)}`,
    split: `${called(part)} is divided in two`,
    drop: `${called(part)} is dropped`,
    background: `${called(part)} is background`,
    lock: `${called(part)} is locked`,
    unlock: `${called(part)} is unlocked`,
    move: `a region of one image becomes ${target === undefined ? "" : called(target)}`,
  }[action];
}

function row(step, model, part, parts, said) {
  const locked = said.locked.includes(part.index);
  const planned = pending.steps.filter((one) => one.part === part.index || one.others?.includes(part.index));
  const name = h("input", {
    type: "text", value: planned.find(({ action }) => action === "rename")?.name ?? part.name, "aria-label": `Name of the part ${part.name}`, maxlength: 40, disabled: locked, "data-part": part.index,
    onchange: () => name.value.trim() !== part.name && step({ action: "rename", part: part.index, name: name.value }),
    onkeydown: (event) => event.key === "Enter" && name.blur(),
  });
  const count = part.variants.reduce((sum, variant) => sum + variant.count, 0);
  const task = (label, run, more = {}) => button(label, run, { class: `small ${more.class ?? ""}`, disabled: locked, ...more.attributes });
  const untrained = part.variants.filter(({ trained }) => !trained).length;
  return h("section", { class: `card part-row ${planned.some(({ action, part: first }) => ["drop", "background"].includes(action) || (action === "merge" && first !== part.index)) ? "gone" : ""}`, style: { "--c": part.color }, "aria-label": part.name, data: { part: part.index } },
    h("div", { class: "name" }, name, h("span", { class: "quiet" }, `${plural(count, "image")}, ${plural(part.variants.length, "kind")}${untrained ? `, ${untrained} not trained yet` : ""}`)),
    h("div", { class: "samples" }, part.variants.slice(0, SAMPLES).map(({ code, count }) =>
      h("button", { type: "button", "aria-label": `Images with ${part.name} ${code}`, title: `${plural(count, "image")}: look and correct single ones`, onclick: () => look(step, model, part, code) },
        h("img", { src: thumbOf({ part: part.index, code }), alt: "", loading: "lazy" })))),
    h("div", { class: "tasks" },
      parts.length > 1 && task("Merge with…", () => join(step, model, part, parts)),
      task("Split in two", () => step({ action: "split", part: part.index, pieces: 2 })),
      task("Make it background", () => step({ action: "background", part: part.index })),
      task("Drop", () => step({ action: "drop", part: part.index }), { class: "danger" }),
      button(locked ? "Unlock" : "Lock", () => step({ action: locked ? "unlock" : "lock", part: part.index }), { class: "small", icon: locked ? "lock" : "unlock", "aria-pressed": String(locked) })));
}

function join(step, model, part, parts) {
  const box = dialog(`Merge ${part.name} with`, h("ul", { class: "part-list", style: { "min-width": "300px" } },
    parts.filter(({ index }) => index !== part.index).map((other) => h("li", {}, h("button", {
      type: "button", class: "part-button", style: { "--c": other.color }, data: { part: other.index },
      onclick: () => (box.close(), step({ action: "merge", part: part.index, others: [other.index] })),
    }, h("img", { src: thumbOf({ part: other.index, code: other.variants[0].code }), alt: "" }), h("span", {}, capitalised(other.name), h("small", {}, `becomes ${part.name}`)))))));
}

/** Applies what was said, or takes back what was applied last. All images are read again, which takes a while. */
async function apply(screen, model, back = false) {
  const box = dialog(back ? "Undoing" : "Applying", h("p", { class: "row" }, h("i", { class: "spin" }), "All images are read again with the corrected parts. Nothing is trained again."));
  box.addEventListener("cancel", (event) => event.preventDefault());
  box.querySelector("header button").remove();
  const done = await attempt(() => post(`${model.base}/corrections${back ? "/undo" : ""}`, back ? {} : { steps: pending.steps }));
  box.close();
  if (!done) return;
  if (!back) pending.steps = [];
  await attempt(reloadRun);
  toast(back ? "Undone." : "The parts are corrected.");
}

/** Images that show one kind: a region that belongs elsewhere is moved with two clicks. */
async function look(step, model, part, code) {
  const query = new URLSearchParams({ part: part.index, code, limit: 24 });
  const found = await attempt(() => get(`${model.base}/images?${query}`));
  if (!found) return;
  const tiles = (await attempt(() => get(`${model.base}/tiles?v=${model.version}&i=${found.images.map(({ index }) => index).join(",")}`)))?.tiles ?? [];
  const box = dialog(`${capitalised(part.name)}, kind ${code}`,
    h("p", { class: "quiet" }, "Is a region in one of these another part? Click it."),
    h("div", { class: "maps", style: { "margin-top": "12px", "min-width": "min(640px, 84vw)" } }, tiles.filter(({ map }) => map).map((tile) => {
      tile.map.window = tile.window;
      const canvas = h("canvas", { "aria-hidden": "true" });
      paint(canvas, tile.map, model.colors, { only: part.index });
      const { name } = found.images.find(({ index }) => index === tile.index);
      return h("figure", {}, h("div", { class: "fit", style: { "aspect-ratio": `${tile.width} / ${tile.height}`, "border-radius": "10px", overflow: "hidden" }, data: { index: tile.index }, onclick: (event) => {
        const rectangle = event.currentTarget.getBoundingClientRect();
        const x = (event.clientX - rectangle.left) / rectangle.width, y = (event.clientY - rectangle.top) / rectangle.height;
        const source = partAt(tile.map, x, y);
        paint(canvas, tile.map, model.colors, { only: source });
        box.close();
        move(step, model, { image: tile.index, part: source, at: [x * tile.width, y * tile.height] }, name);
      } }, h("img", { src: tile.thumb, alt: name }), canvas), h("span", { class: "quiet" }, name));
    })));
}

function move(step, model, where, name) {
  const box = dialog(`In ${name}, this ${model.parts[where.part].name} is really`, h("ul", { class: "part-list", style: { "min-width": "300px" } },
    model.parts.filter((other) => other.index !== where.part && (other.variants.length || !other.index)).map((other) => h("li", {}, h("button", {
      type: "button", class: "part-button", style: { "--c": other.color }, data: { part: other.index },
      onclick: () => (box.close(), step({ action: "move", target: other.index, ...where })),
    }, other.variants.length ? h("img", { src: thumbOf({ part: other.index, code: other.variants[0].code }), alt: "" }) : null, h("span", {}, capitalised(other.name)))))));
}
