// Give away: parts as files for other programs.
import { get, post } from "./api.js";
import { thumbOf } from "./files.js";
import { pieces } from "./state.js";
import { attempt, button, capitalised, copy, h, plural } from "./ui.js";

const TOOLS = [
  ["diffusers", "diffusers", "For Python: one folder that a pipeline loads."],
  ["a1111", "Stable Diffusion web UI", "LoRA and embeddings for AUTOMATIC1111 and Forge."],
  ["comfyui", "ComfyUI", "LoRA, embeddings and a workflow to drop on the canvas."],
];

export async function show(screen, model, signal) {
  const chosen = new Set(pieces().map(({ part, code }) => `${part}:${code}`));
  const to = new Set(["diffusers", "a1111", "comfyui"]);
  const about = { name: "", number_format: "float16", data_license: "", push: "", public: false };
  const jobs = h("div", { class: "atlas", id: "exports", "aria-live": "polite" });
  const count = h("span", { class: "quiet", role: "status" });
  const say = () => (count.textContent = chosen.size ? `${plural(chosen.size, "part")} chosen` : "none chosen: all that were trained");
  const trained = (part) => part.variants.filter((variant) => variant.trained);
  const rows = model.parts.slice(1).filter((part) => trained(part).length).map((part) => h("fieldset", { class: "options", style: { "--c": part.color } },
    h("legend", { class: "chip" }, h("i"), capitalised(part.name)),
    h("div", { class: "pick-parts" }, trained(part).map(({ code }) => h("label", { style: { "--c": part.color } },
      h("input", { type: "checkbox", "aria-label": `${part.name} ${code}`, checked: chosen.has(`${part.index}:${code}`), "data-choice": `${part.index}:${code}`, onchange: (event) => (chosen[event.target.checked ? "add" : "delete"](`${part.index}:${code}`), say()) }),
      h("img", { src: thumbOf({ part: part.index, code }), alt: "", loading: "lazy" }))))));
  const text = (label, key, hint, placeholder = "") => h("label", { class: "field" }, h("span", {}, label), h("input", { type: "text", id: `give-${key}`, placeholder, oninput: (event) => (about[key] = event.target.value) }), hint && h("small", {}, hint));
  say();
  const refresh = async () => {
    const { jobs: all } = await get("/api/jobs", signal);
    const mine = all.filter(({ kind, about: { run } }) => kind === "export" && run === model.name);
    const key = JSON.stringify(mine.map(({ id, state, line }) => [id, state, line]));
    if (jobs.dataset.key === key) return;
    jobs.dataset.key = key;
    jobs.replaceChildren(...(await Promise.all(mine.slice(0, 4).map((job) => card(job)))));
    if (!mine.length) jobs.append(h("p", { class: "empty" }, "Your files and the results of their checks appear here."));
  };
  screen.append(
    h("div", { class: "head" }, h("div", {}, h("h1", {}, "Take it elsewhere"), h("p", { class: "lead" }, "Your parts as files for other programs. Every file is read back and compared before you get it."))),
    h("div", { class: "two" },
      h("form", { class: "card panel", onsubmit: (event) => event.preventDefault() },
        h("div", { class: "row", style: { "justify-content": "space-between" } }, h("h2", {}, "Which parts?"), count), ...rows),
      h("div", { class: "atlas" },
        h("form", { class: "card panel", onsubmit: (event) => event.preventDefault() },
          h("fieldset", { class: "options" }, h("legend", {}, "For which program?"), TOOLS.map(([value, title, hint]) => h("label", { class: "option" }, h("input", { type: "checkbox", checked: true, value, onchange: (event) => to[event.target.checked ? "add" : "delete"](value) }), h("span", {}, h("b", {}, title), h("small", {}, hint))))),
          text("Name", "name", "File names begin with it.", "partcraft"),
          text("Licence of your images", "data_license", "For the model card that goes with the files.", "CC BY 4.0"),
          text("Hugging Face", "push", "Also upload it there, as OWNER/NAME; private unless you choose otherwise.", "OWNER/birds"),
          h("label", { class: "check" }, h("input", { type: "checkbox", onchange: (event) => (about.public = event.target.checked) }), "Visible to everybody"),
          button("Make the files", async (event) => {
            const { currentTarget } = event;
            currentTarget.disabled = true;
            const choices = [...chosen].map((key) => key.split(":").map(Number));
            await attempt(() => post(`${model.base}/export`, { ...about, choices, to: TOOLS.map(([tool]) => tool).filter((tool) => to.has(tool)) }));
            currentTarget.disabled = false;
            await attempt(refresh);
          }, { class: "primary", id: "give-start" })),
        jobs)),
  );
  await refresh();
  const timer = setInterval(() => refresh().catch(() => {}), 1500);
  signal.addEventListener("abort", () => clearInterval(timer));
}

async function card(job) {
  const found = job.state === "done" ? await get(`/api/jobs/${job.id}/files`).catch(() => null) : null;
  return h("article", { class: "card job", data: { id: job.id, state: job.state }, "aria-label": job.title },
    h("header", {}, h("div", {}, h("h3", {}, found ? "Ready" : job.state === "running" ? "Writing and checking…" : "That did not work"), h("span", { class: "quiet" }, `started ${job.started}`)),
      found && h("a", { class: "button primary", href: `/api/jobs/${job.id}/export.zip`, download: "partcraft.zip" }, "Download"),
      job.state === "running" && button("Stop", () => attempt(() => post(`/api/jobs/${job.id}/stop`)), { class: "small" })),
    job.line && h("p", { class: "quiet" }, job.line),
    job.message && h("p", { class: "note bad" }, job.message),
    found?.checked.length && h("ul", { class: "files" }, found.checked.map((line) => h("li", {}, h("span", {}, line), h("span", { class: "yes" }, "✓")))),
    found && h("details", {}, h("summary", {}, plural(found.files.length, "file")), h("ul", { class: "files" }, found.files.map(({ name, bytes }) => h("li", {}, h("span", {}, name), h("span", { class: "quiet" }, size(bytes)))))),
    found?.words && h("div", { class: "row" }, button("Copy the words for the prompt", () => copy(found.words, "Words"), { class: "small", icon: "copy" })));
}

const size = (bytes) => (bytes > 2 ** 20 ? `${(bytes / 2 ** 20).toFixed(1)} MB` : `${Math.max(1, Math.round(bytes / 1024))} kB`);
