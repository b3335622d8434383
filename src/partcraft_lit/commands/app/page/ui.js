// Elements, icons, messages and dialogs.

/** An element: h("button", {class: "x", onclick: f, data: {...}}, children...). Text is always text, never markup. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (["value", "checked", "disabled", "hidden", "selected"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const ICONS = {
  close: "M6 6l12 12M18 6L6 18",
  zoom: "M10.500 17a6.500 6.500 0 1 1 0-13 6.500 6.500 0 0 1 0 13zM20 20l-4.700-4.700",
  sun: "M12 16.500a4.500 4.500 0 1 1 0-9 4.500 4.500 0 0 1 0 9zM12 2.500v2M12 19.500v2M2.500 12h2M19.500 12h2M5.300 5.300l1.400 1.400M17.300 17.300l1.400 1.400M5.300 18.700l1.400-1.400M17.300 6.700l1.400-1.400",
  moon: "M20 14.500A8.500 8.500 0 0 1 9.500 4a8.500 8.500 0 1 0 10.500 10.500z",
  lock: "M6 11h12v9H6zM8.500 11V7.500a3.500 3.500 0 0 1 7 0V11",
  unlock: "M6 11h12v9H6zM8.500 11V7.500a3.500 3.500 0 0 1 6.800-1.200",
  dice: "M5 5h14v14H5zM9 9h.01M15 15h.01M12 12h.01M15 9h.01M9 15h.01",
  download: "M12 4v11M7.500 11l4.500 4.500 4.500-4.500M5 20h14",
  eye: "M2.500 12S6 5.500 12 5.500 21.500 12 21.500 12 18 18.500 12 18.500 2.500 12 2.500 12zM12 14.800a2.800 2.800 0 1 0 0-5.600 2.800 2.800 0 0 0 0 5.600z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  compare: "M12 3v18M4 6h5v12H4M20 6h-5v12h5",
  photo: "M4 6h16v13H4zM4 16l4.500-4.500L13 16l3-3 4 4M15.500 10h.01",
  plus: "M12 5v14M5 12h14",
  undo: "M9 14l-5-5 5-5M4 9h10a6 6 0 0 1 0 12h-3",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

export function iconButton(name, label, onclick, more = {}) {
  const { class: kind = "", ...rest } = more;
  return h("button", { type: "button", class: `icon ${kind}`, "aria-label": label, title: label, onclick, ...rest }, icon(name));
}

export function button(label, onclick, more = {}) {
  const { class: kind = "", icon: sign, ...rest } = more;
  return h("button", { type: "button", class: `button ${kind}`, onclick, ...rest }, sign ? icon(sign) : null, label);
}

/** A short message at the foot of the page; `action` is {label, run}. */
export function toast(text, { bad = false, action = null, seconds = bad ? 9 : 4 } = {}) {
  const place = document.getElementById("toasts");
  const note = h("div", { class: `toast ${bad ? "bad" : ""}`, role: bad ? "alert" : null }, h("span", {}, text));
  if (action) note.append(h("button", { type: "button", onclick: () => (action.run(), note.remove()) }, action.label));
  for (const old of [...place.children]) if (old.firstChild.textContent === text) old.remove(); // preview and images may fail alike
  while (place.children.length > 2) place.firstChild.remove();
  place.append(note);
  setTimeout(() => note.remove(), seconds * 1000);
}

/** Runs `work`; what goes wrong becomes one sentence at the foot of the page. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message || "That did not work.", { bad: true });
    return undefined;
  }
}

export function dialog(title, ...content) {
  const box = h("dialog", { "aria-label": title });
  const close = () => box.close();
  box.append(h("header", {}, h("h2", {}, title), iconButton("close", "Close", close)), ...content);
  box.addEventListener("click", (event) => event.target === box && close());
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
  return box;
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    toast(`${what} copied.`);
  } catch {
    dialog(`Copy ${what.toLowerCase()}`, h("pre", {}, text));
  }
}

export const capitalised = (text) => text.charAt(0).toUpperCase() + text.slice(1);
export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** Calls `run` once, when nothing has asked for `wait` milliseconds. */
export function later(run, wait) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), wait);
  };
}
