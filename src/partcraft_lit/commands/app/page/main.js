// Starts the page: which screen is shown, which model is open, light or dark.
import { get } from "./api.js";
import { showRail } from "./creature.js";
import { onChange, state, update, useRun } from "./state.js";
import { attempt, h, iconButton, toast } from "./ui.js";

const SCREENS = { pick: "Pick", compose: "Compose", correct: "Correct", train: "Train", give: "Give away" };
const WITH_RAIL = ["pick", "compose"];

/** What is known of the server and the open model: {app, run, parts, colors, noun, ...}. */
export const known = { app: null, model: null };

let leaving = new AbortController();

function current() {
  const name = location.hash.slice(1);
  return name in screens() ? name : Object.keys(screens())[0];
}

function screens() {
  const names = { ...SCREENS };
  if (!known.model) for (const name of ["pick", "compose", "correct", "give"]) delete names[name];
  for (const name of known.app?.without || []) delete names[name];
  if (known.model?.bundle) for (const name of ["correct", "give"]) delete names[name];
  return names;
}

async function show() {
  const name = current();
  leaving.abort();
  leaving = new AbortController();
  document.title = `${SCREENS[name]} · partcraft`;
  document.getElementById("screens").replaceChildren(
    ...Object.entries(screens()).map(([key, title]) => h("a", { href: `#${key}`, "aria-current": key === name ? "page" : null }, title)),
  );
  const rail = document.getElementById("rail"), main = document.getElementById("main");
  rail.hidden = !(known.model && WITH_RAIL.includes(name));
  main.classList.toggle("with-rail", !rail.hidden);
  if (!rail.hidden) showRail(rail, known.model, name, leaving.signal);
  const screen = document.getElementById("screen");
  const { show: render } = await import(`./${name}.js`);
  screen.replaceChildren();
  screen.dataset.name = name;
  await attempt(() => render(screen, known.model, leaving.signal, known.app));
  window.scrollTo(0, 0);
}

/** Reads the open model again, after its parts have changed; what was picked of parts that are gone is dropped. */
export async function reloadRun() {
  const { name } = known.model;
  const fresh = await get(`/api/runs/${encodeURIComponent(name)}`);
  known.model = { ...fresh, base: known.model.base, colors: fresh.parts.map((part) => part.color) };
  const there = ({ part, code }) => fresh.parts[part]?.variants.some((variant) => variant.code === code);
  const slots = {};
  for (const [part, list] of Object.entries(state.slots)) if (list.some(there)) slots[part] = list.filter(there);
  update({ slots, not: state.not.filter(there) });
  await show();
}

/** Opens another model and shows the screen again. */
export async function openRun(name) {
  const model = await attempt(() => get(`/api/runs/${encodeURIComponent(name)}`));
  if (!model) return;
  known.model = { ...model, base: `/api/runs/${encodeURIComponent(name)}`, colors: model.parts.map((part) => part.color) };
  useRun(name);
  await refreshRuns();
  await show();
}

export async function refreshRuns() {
  known.app = await get("/api/app");
  const select = document.getElementById("run");
  select.replaceChildren(...known.app.runs.map(({ name, title }) => h("option", { value: name, selected: name === known.model?.name }, title)));
  select.closest("label").hidden = known.app.runs.length < 2;
}

function theme() {
  const place = document.getElementById("theme");
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const draw = () => {
    const fresh = iconButton(dark() ? "sun" : "moon", dark() ? "Light colours" : "Dark colours", () => {
      document.documentElement.dataset.theme = dark() ? "light" : "dark";
      localStorage.setItem("partcraft-theme", document.documentElement.dataset.theme);
      draw();
    }, { id: "theme" });
    document.getElementById("theme").replaceWith(fresh);
  };
  const stored = localStorage.getItem("partcraft-theme");
  if (stored === "light" || stored === "dark") document.documentElement.dataset.theme = stored;
  if (place) draw();
}

async function start() {
  theme();
  await refreshRuns();
  document.getElementById("run").addEventListener("change", (event) => openRun(event.target.value));
  window.addEventListener("hashchange", show);
  onChange((why) => why === "restored" && (current() === "compose" ? show() : (location.hash = "#compose")));
  acceptFiles();
  const wanted = known.app.runs.some(({ name }) => name === state.run) ? state.run : known.app.run;
  if (wanted) await openRun(wanted);
  else await show();
}

/** A file dropped anywhere: an image of this app brings its composition back, any other becomes a photo to pick from. */
function acceptFiles() {
  let depth = 0;
  const body = document.body;
  body.dataset.drop = "Drop a photo to pick from, or an image made here to bring it back";
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    body.classList.toggle("dropping", depth > 0);
  };
  const carries = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  body.addEventListener("dragenter", (event) => carries(event) && mark(1));
  body.addEventListener("dragleave", (event) => carries(event) && mark(-1));
  body.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  body.addEventListener("drop", async (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    mark(-depth);
    const file = event.dataTransfer.files[0];
    if (file && known.model) (await import("./files.js")).take(file);
  });
}

start().catch((error) => toast(error.message, { bad: true, seconds: 60 }));
