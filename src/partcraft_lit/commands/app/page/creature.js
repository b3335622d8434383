// The rail: what has been picked, part by part, and what it looks like so far.
import { queued } from "./api.js";
import { thumbOf } from "./files.js";
import { composition, drop, onChange, pick, pieces, setSlot, state, update } from "./state.js";
import { button, capitalised, h, icon, iconButton, later, toast } from "./ui.js";

const OUTLINE = "M12 40c0-16 14-26 30-26 9 0 15 4 20 9l12-3-7 10c2 16-12 26-26 26-17 0-29-6-29-16z";
/** What was asked for before the screen that does it was there. */
export const orders = { make: false };
let preview = { url: null, key: null };

export function showRail(rail, model, screen, signal) {
  const slots = h("ul", { class: "slots", "aria-label": "Parts" });
  const picture = h("div", { class: "preview", id: "preview" });
  const clear = button("Clear", () => update({ slots: {}, locks: {}, not: [] }), { class: "small" });
  const make = button("Make it", () => {
    orders.make = true;
    if (screen === "compose") window.dispatchEvent(new CustomEvent("make"));
    else location.hash = "#compose";
  }, { class: "primary", id: "make" });
  const surprise = button("Surprise me", () => shuffle(model), { icon: "dice", id: "surprise" });
  rail.replaceChildren(
    h("div", { class: "card creature" },
      h("header", {}, h("h2", {}, `Your ${model.noun}`), clear),
      picture, slots, h("div", { class: "actions" }, make, surprise, button("Words and more", () => (location.hash = screen === "compose" ? "#pick" : "#compose"), { id: "other-screen" }))),
  );
  const other = rail.querySelector("#other-screen");
  other.textContent = screen === "compose" ? "More images" : "Fine-tune";
  let open = null;
  const drawSlots = (why) => {
    const before = new Map([...slots.children].map((slot) => [slot.dataset.part, slot.dataset.codes]));
    slots.replaceChildren(...model.parts.slice(1).concat(model.parts[0]).map((part) => slotOf(model, part, screen, open === part.index, (next) => ((open = open === next ? null : next), drawSlots()))));
    for (const slot of slots.children)
      if (why === "composition" && before.size && slot.dataset.codes && before.get(slot.dataset.part) !== slot.dataset.codes) slot.classList.add("new");
    const some = pieces().length > 0;
    make.disabled = clear.disabled = !some;
  };
  const drawPreview = previewer(picture, model, signal);
  drawSlots();
  drawPreview();
  onChange((why) => {
    if (why !== "history") drawSlots(why);
    drawPreview();
  }, signal);
}

function slotOf(model, part, screen, isOpen, toggle) {
  const list = state.slots[part.index] || [], locked = Boolean(state.locks[part.index]);
  const first = list[0];
  const source = list.length > 1 ? `${list.length} mixed` : first ? (first.from ? `from ${first.from}` : `kind ${first.code}`) : "choose one";
  const head = h("div", { class: "line" },
    first ? h("img", { class: "thumb", src: first.thumb, alt: "" }) : h("span", { class: "thumb none" }),
    h("button", { type: "button", class: "what", "aria-expanded": String(isOpen), "aria-label": `${part.name}: ${source}. Show all.`, onclick: () => toggle(part.index) },
      h("b", {}, capitalised(part.name)), h("small", {}, source)),
    first && iconButton(locked ? "lock" : "unlock", locked ? `Unlock the ${part.name}` : `Keep this ${part.name} when shuffling`, () => update({ locks: { ...state.locks, [part.index]: !locked } }, "locks"), { class: "tiny", "aria-pressed": String(locked) }),
    first && iconButton("close", `Remove the ${part.name}`, () => setSlot(part.index, []), { class: "tiny" }));
  const more = isOpen && h("div", { class: "more" },
    screen === "compose" && list.map((piece) => weightOf(part, piece)),
    h("p", {}, list.length ? "Change it. Hold Shift to mix several." : `All kinds of ${part.name}`),
    h("div", { class: "strip", role: "group", "aria-label": `All kinds of ${part.name}` },
      part.variants.map((variant) => {
        const chosen = list.some(({ code }) => code === variant.code);
        const label = `${part.name} ${variant.code}, in ${variant.count} images${variant.trained ? "" : ", not trained"}`;
        return h("button", {
          type: "button", class: variant.trained ? "" : "untrained", "aria-pressed": String(chosen), "aria-label": label, title: label, data: { code: variant.code },
          onclick: (event) => (chosen ? drop(part.index, variant.code) : pick({ part: part.index, code: variant.code, from: null, thumb: thumbOf({ part: part.index, code: variant.code }) }, event.shiftKey)),
        }, h("img", { src: thumbOf({ part: part.index, code: variant.code }), alt: "", loading: "lazy" }));
      })));
  return h("li", { class: "slot", style: { "--c": part.color }, data: { part: part.index, codes: list.map(({ code }) => code).join(" ") } }, head, more);
}

function weightOf(part, piece) {
  const output = h("output", {}, `${piece.weight.toFixed(1)}×`);
  return h("label", { class: "weight" }, `Strength${piece.from ? "" : ` of ${piece.code}`}`,
    h("input", {
      type: "range", min: 0.1, max: 2.5, step: 0.1, value: piece.weight, "aria-label": `Strength of the ${part.name}`,
      oninput: (event) => (output.textContent = `${Number(event.target.value).toFixed(1)}×`),
      onchange: (event) => setSlot(part.index, state.slots[part.index].map((other) => (other.code === piece.code ? { ...other, weight: Number(event.target.value) } : other))),
    }), output);
}

/** A random kind for every part that is not locked; kinds that many images have are likelier. */
function shuffle(model) {
  const slots = { ...state.slots };
  for (const part of model.parts.slice(1)) {
    if (state.locks[part.index]) continue;
    const kinds = part.variants.filter(({ trained }) => trained);
    let mark = Math.random() * kinds.reduce((sum, { count }) => sum + count, 0);
    const kind = kinds.find(({ count }) => (mark -= count) <= 0) || kinds[0];
    if (kind) slots[part.index] = [{ part: part.index, code: kind.code, weight: 1, from: null, thumb: thumbOf({ part: part.index, code: kind.code }) }];
  }
  update({ slots });
}

/** What tells one creature from another: the images that were made of it have it, too. */
export const keyOf = (model, asked, seed) => JSON.stringify([model.name, asked, seed]);

/**
 * Draws the preview again whenever the composition has changed: one drawing at a time, the newest wins. An image that
 * was made of the same composition with the same seed is shown instead: it has more steps.
 */
function previewer(place, model, signal) {
  let running = false, again = false, failed = false;
  const gone = new Set(); // images of a server that was started anew since
  const made = (key) => state.history.find((entry) => entry.key === key && !gone.has(entry.thumb))?.thumb;
  const lost = (url) => {
    if (url.startsWith("data:")) return;
    gone.add(url);
    preview = { url: null, key: null };
    soon();
  };
  const imageOf = (url, busy) => h("img", { src: url, alt: `Preview of your ${model.noun}`, class: busy ? "stale" : "", id: "preview-image", onerror: () => lost(url) });
  const show = (busy) => {
    const some = pieces().length > 0;
    place.replaceChildren(
      !some ? hint(model) : preview.url ? imageOf(preview.url, busy) : h("span", { class: "quiet" }, failed ? "No preview" : "Drawing…"),
      ...(busy && some ? [h("span", { class: "busy" }, h("i", { class: "spin" }), "Preview")] : []),
    );
  };
  const draw = async () => {
    if (signal.aborted) return;
    const key = keyOf(model, composition(), state.seed), better = made(key);
    if (!pieces().length || (key === preview.key && (!better || better === preview.url))) return show(false);
    if (running) return (again = true);
    if (better) {
      preview = { url: better, key };
      return show(false);
    }
    running = true;
    show(true);
    try {
      const drawn = await queued("preview", { run: model.name, composition: composition(), seed: state.seed }, { signal });
      preview = { url: drawn.image, key };
      failed = false;
    } catch (error) {
      if (error.name === "AbortError") return; // the screen was left; the next one draws it
      preview = { url: null, key };
      failed = true;
      toast(error.message, { bad: true });
    }
    running = false;
    show(false);
    if (again) {
      again = false;
      draw();
    }
  };
  const soon = later(draw, 60);
  signal.addEventListener("abort", () => (preview.url || (preview.key = null)));
  return () => (show(false), soon());
}

function hint(model) {
  const svg = icon("plus");
  svg.setAttribute("viewBox", "0 0 84 66");
  svg.firstChild.setAttribute("d", OUTLINE);
  svg.style.cssText = "fill:none;stroke:var(--soft);stroke-width:2;stroke-dasharray:5 6;stroke-linecap:round";
  return h("div", { class: "hint" }, svg, `Click a ${model.parts[1]?.name ?? "part"} in an image, and it appears here.`);
}
