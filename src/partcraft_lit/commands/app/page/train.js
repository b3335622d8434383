// Train: which images, which parts; how far it is; stop and go on.
import { get, post } from "./api.js";
import { openRun, refreshRuns } from "./main.js";
import { attempt, button, duration, h } from "./ui.js";

const STATES = { running: "running", done: "done", stopped: "stopped", failed: "did not work" };

export async function show(screen, model, signal) {
  const jobs = h("div", { class: "atlas", id: "jobs", "aria-live": "polite" });
  const { folders } = await get("/api/folders", signal);
  screen.append(
    h("div", { class: "head" }, h("div", {}, h("h1", {}, "Teach it new parts"), h("p", { class: "lead" }, "Point at a folder of images of one kind of thing. The parts are found first; look at them, then train."))),
    h("div", { class: "two" }, form(folders, () => refresh()), h("div", {}, jobs)),
  );
  const before = new Map();
  const refresh = async () => {
    const found = await get("/api/jobs", signal);
    const shown = found.jobs.filter(({ kind }) => kind !== "export");
    for (const job of shown) {
      const text = JSON.stringify({ ...job, seconds: Math.round(job.seconds) });
      if (before.get(job.id)?.text === text) continue;
      const fresh = card(job, refresh);
      const old = before.get(job.id)?.element;
      if (old?.isConnected) old.replaceWith(fresh);
      before.set(job.id, { text, element: fresh });
    }
    if (shown.some(({ id }) => !before.get(id).element.isConnected)) jobs.replaceChildren(...shown.map(({ id }) => before.get(id).element));
    if (!shown.length) jobs.replaceChildren(h("p", { class: "empty" }, "Trainings appear here, with their progress and what the model draws so far."));
    return shown.some(({ state }) => state === "running");
  };
  await refresh();
  const timer = setInterval(() => refresh().catch(() => {}), 1500);
  signal.addEventListener("abort", () => clearInterval(timer));
}

function form(folders, started) {
  const values = { data: folders.length ? "folder" : "zoo", model: "mini" };
  const detail = h("div", { class: "panel", style: { padding: 0 } });
  const input = (label, key, attributes = {}, hint = null) =>
    h("label", { class: "field grow" }, h("span", {}, label), h("input", { type: "text", id: `train-${key}`, ...attributes, value: values[key] ?? "", oninput: (event) => (values[key] = event.target.type === "number" ? Number(event.target.value) || 0 : event.target.value) }), hint && h("small", {}, hint));
  const choice = (name, key, options) => h("fieldset", { class: "options" }, h("legend", {}, name),
    options.map(([value, title, text]) => h("label", { class: "option" }, h("input", { type: "radio", name: key, value, checked: values[key] === value, onchange: () => ((values[key] = value), key === "data" && draw()) }), h("span", {}, h("b", {}, title), h("small", {}, text)))));
  const draw = () => detail.replaceChildren(
    ...(values.data === "folder"
      ? [
          h("label", { class: "field" }, h("span", {}, "Folder"), h("input", { type: "text", id: "train-folder", list: "folders", placeholder: folders[0] ?? "photos", value: values.folder ?? "", oninput: (event) => (values.folder = event.target.value) }), h("datalist", { id: "folders" }, folders.map((folder) => h("option", { value: folder }))), h("small", {}, "Below the folder in which the app was started.")),
          input("What do they show?", "noun", { placeholder: "bird" }, "One word, if there is one."),
          choice("Learn with", "model", [["mini", "The small built-in model", "Quick, and no downloads; images of 64 pixels."], ["sd15", "Stable Diffusion 1.5", "Real photographs; needs its weights, and a graphics card for speed."]]),
        ]
      : []),
  );
  const requested = () => Object.fromEntries(Object.entries(values).filter(([key, value]) => value !== "" && (values.data === "folder" || !["folder", "noun"].includes(key))));
  const go = (verb) => async (event) => {
    const { currentTarget } = event;
    currentTarget.disabled = true;
    await attempt(() => post(`/api/jobs/${verb}/start`, requested()));
    currentTarget.disabled = false;
    await attempt(started);
  };
  const panel = h("form", { class: "card panel", onsubmit: (event) => event.preventDefault() },
    choice("Which images?", "data", [["folder", "A folder of mine", "Photos or drawings of one kind of thing."], ["zoo", "The drawn birds", "To try it out."]]),
    detail,
    h("div", { class: "row", style: { "align-items": "start", "flex-wrap": "nowrap" } },
      input("Parts", "parts", { type: "number", min: 0, max: 50, placeholder: "automatic" }), input("Kinds of each", "kinds", { type: "number", min: 0, max: 1000, placeholder: "automatic" }), input("Steps", "steps", { type: "number", min: 0, placeholder: "automatic" })),
    h("label", { class: "check" }, h("input", { type: "checkbox", id: "train-quick", onchange: (event) => (values.quick = event.target.checked) }), "Skip the scores at the end"),
    h("div", { class: "row" }, button("Look at the parts", go("discover"), { id: "train-look" }), button("Train", go("train"), { class: "primary", id: "train-start" })));
  draw();
  return panel;
}

function card(job, refresh) {
  const act = (what) => async () => (await attempt(() => post(`/api/jobs/${job.id}/${what}`)), attempt(refresh));
  const { progress } = job;
  const share = progress && progress.max_steps ? progress.step / progress.max_steps : null;
  const tasks = [];
  if (job.state === "running") tasks.push(button("Stop", act("stop"), { class: "small", "data-task": "stop" }));
  if (["stopped", "failed"].includes(job.state)) tasks.push(button(job.state === "stopped" ? "Go on" : "Try again", act("resume"), { class: "small", "data-task": "resume" }));
  if (job.run) tasks.push(button("Pick from it", async () => (await attempt(refreshRuns), await openRun(job.run), (location.hash = "#pick")), { class: "small primary", "data-task": "open" }));
  return h("article", { class: "card job", "aria-label": job.title, data: { id: job.id, state: job.state, kind: job.kind, step: progress?.step ?? "" } },
    h("header", {}, h("div", {}, h("h3", {}, job.title), h("span", { class: "quiet" }, `${STATES[job.state]} · started ${job.started}`)), h("div", { class: "row" }, tasks)),
    share !== null && h("div", { class: "progress", role: "progressbar", "aria-valuenow": Math.round(100 * share), "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Progress" }, h("i", { style: { width: `${100 * share}%` } })),
    progress && h("ul", { class: "facts" },
      fact(`${progress.step.toLocaleString("en")} of ${progress.max_steps.toLocaleString("en")}`, "steps"),
      job.state === "running" && progress.seconds_left !== null && progress.seconds_left > 0 && fact(duration(progress.seconds_left), "to go"),
      progress.loss != null && fact(progress.loss.toFixed(3), "loss")),
    !progress && job.line && h("p", { class: "quiet", style: { "overflow-wrap": "anywhere" } }, job.line),
    job.message && h("p", { class: "note bad" }, job.message),
    job.kind === "discover" && job.atlas && h("img", { class: "samples", src: `/api/jobs/${job.id}/atlas.jpg`, alt: "The parts that were found, each row with images that show it" }),
    job.sample && h("figure", { style: { margin: 0 } }, h("img", { class: "samples", src: `/api/jobs/${job.id}/sample.png?${job.sample}`, alt: "What it draws so far" }), h("figcaption", { class: "quiet" }, "What it draws so far")));
}

const fact = (value, label) => h("li", {}, h("b", {}, value), h("span", {}, label));
