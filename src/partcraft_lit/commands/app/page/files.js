// Files that are given to the page: photos to pick from, and images made here that carry their composition.
import { send } from "./api.js";
import { known, openRun } from "./main.js";
import { state, update } from "./state.js";
import { attempt, button, h, toast } from "./ui.js";

export const photos = []; // of this tab, newest first: gone with it, as they are on the server

export async function take(file) {
  if (file.size > known.app.most_bytes) {
    toast(`That file has ${(file.size / 2 ** 20).toFixed(0)} MB; at most ${Math.round(known.app.most_bytes / 2 ** 20)} are read.`, { bad: true });
    return;
  }
  const found = await attempt(() => send(`${known.model.base}/files`, file));
  if (!found) return;
  if (found.composition) return restore(found);
  found.photo.map.window = found.photo.window;
  photos.unshift(found.photo);
  photos.length = Math.min(photos.length, 12);
  location.hash = "#pick";
  update({}, "photos");
  toast("Your photo is first. Click a part of it.");
}

/** Brings a stored composition back, in the model that made it. */
export async function restore({ composition, run }) {
  if (run && run !== known.model.name) {
    if (!known.app.runs.some(({ name }) => name === run)) {
      toast(`That image was made with the model ${run}, which is not here.`, { bad: true });
      return;
    }
    await openRun(run);
  }
  const slots = {};
  for (const choice of composition.choices) (slots[choice.part] ??= []).push({ ...choice, from: choice.from || "an image of yours", thumb: thumbOf(choice) });
  update(
    {
      slots, locks: {}, not: composition.negative.map((choice) => ({ ...choice, thumb: thumbOf(choice) })),
      before: composition.before, after: composition.after, seed: composition.seed ?? state.seed, count: 1,
      steps: composition.steps ?? null, guidance: composition.guidance ?? null,
    },
    "restored",
  );
  toast("Its composition is back.");
}

export const thumbOf = ({ part, code }) => `${known.model.base}/parts/${part}/${code}.jpg?v=${known.model.version}`;

/** A button that asks for a file. */
export function fileButton(label, attributes = {}) {
  const input = h("input", { type: "file", accept: "image/*", class: "visually-hidden", tabindex: "-1", "aria-hidden": "true", onchange: () => (input.files[0] && take(input.files[0]), (input.value = "")) });
  return h("span", { class: "file" }, input, button(label, () => input.click(), { icon: "photo", class: "small", ...attributes }));
}
