// Pick: the images, and the parts under the pointer.
import { get } from "./api.js";
import { fileButton, photos } from "./files.js";
import { paint, partAt } from "./labels.js";
import { drop, onChange, pick, state } from "./state.js";
import { attempt, capitalised, dialog, h, icon, iconButton, later, plural, toast } from "./ui.js";

const PAGE = 60; // images of one request
const KEPT = 30; // pages that stay in memory
const TILES = 12; // tiles of one request
const GAP = 16, NAME = 30, LEAST = 150;

const wanted = { text: "", part: null, code: null, all: false };

export async function show(screen, model, signal) {
  const wall = new Wall(model, signal);
  const count = h("span", { class: "visually-hidden", role: "status", id: "count" });
  const search = h("input", {
    type: "search", placeholder: "Search by name", "aria-label": "Search the images by name", value: wanted.text,
    oninput: later((event) => ((wanted.text = event.target.value), wall.load()), 200),
  });
  const filters = h("div", { class: "parts", role: "group", "aria-label": "Only images that show" });
  const drawFilters = () =>
    filters.replaceChildren(
      ...model.parts.slice(1).map((part) =>
        h("button", {
          type: "button", class: "pill", "aria-pressed": String(wanted.part === part.index), style: { "--c": part.color }, data: { part: part.index },
          onclick: () => {
            wanted.part = wanted.part === part.index ? null : part.index;
            wanted.code = null;
            drawFilters();
            wall.load();
          },
        }, h("i", { class: "dot" }), part.name, wanted.part === part.index && wanted.code !== null ? ` ${wanted.code}` : "")),
    );
  const tint = h("button", {
    type: "button", class: "pill", "aria-pressed": String(wanted.all),
    onclick: () => ((wanted.all = !wanted.all), tint.setAttribute("aria-pressed", String(wanted.all)), wall.repaint()),
  }, icon("eye"), "Show all parts");
  tint.firstChild.style.cssText = "width:16px;height:16px;fill:none;stroke:currentColor;stroke-width:1.8";
  wall.onCount = (total) => {
    count.textContent = plural(total, "image");
    if (!wanted.text && wanted.part === null) search.placeholder = `Search ${plural(total, "image")}`;
  };
  wall.onFilter = (part, code) => {
    Object.assign(wanted, { part, code, text: "" });
    search.value = "";
    drawFilters();
    wall.load();
    window.scrollTo({ top: 0 });
  };
  drawFilters();
  screen.append(
    h("div", { class: "head" },
      h("div", {}, h("h1", {}, "Click a part you like"),
        h("p", { class: "lead" }, `Take a ${model.parts[1]?.name ?? "part"} from one image and a ${model.parts[2]?.name ?? "part"} from another.`)),
      fileButton("Your own photo", { id: "own-photo" })),
    h("div", { class: "wall-tools" }, search, filters, tint, count),
    wall.element,
  );
  signal.addEventListener("abort", () => wall.close());
  onChange((why) => why === "photos" && wall.load(), signal);
  await wall.load();
}

function withMap(image, tile) {
  Object.assign(image, tile, { index: image.index });
  if (image.map) image.map.window = tile.window;
  return image;
}

/** An image in the middle of its square. */
function fitting({ width, height }) {
  return width >= height ? { width: "100%", "aspect-ratio": `${width} / ${height}` } : { height: "100%", "aspect-ratio": `${width} / ${height}` };
}

/** The pieces that a click takes: a part of an image. */
function pieceOf(model, image, part) {
  return { part, code: image.codes[part], from: image.name, thumb: `${image.url}/parts/${part}.jpg?v=${model.version}` };
}

export function take(model, image, part, beside = false) {
  const piece = pieceOf(model, image, part);
  const before = state.slots[part];
  pick(piece, beside);
  const name = capitalised(model.parts[part].name);
  const untrained = model.parts[part].variants.find(({ code }) => code === piece.code)?.trained === false;
  toast(untrained ? `${name} of ${image.name}: this one has not been trained yet, so it may not come out.` : `${name} of ${image.name}`, {
    action: { label: "Undo", run: () => (before ? before.forEach((piece, at) => pick(piece, at > 0)) : drop(part, piece.code)) },
  });
}

/** A wall of thousands of images: only what is on the screen is in the page, and few pages are in memory. */
class Wall {
  constructor(model, signal) {
    Object.assign(this, { model, signal, total: null, first: [], pages: new Map(), tiles: new Map(), focused: 0, onCount: () => {}, onFilter: () => {} });
    this.element = h("div", { class: "wall", role: "group", "aria-label": "Images. Arrow keys move, Enter lists the parts of an image.", onkeydown: (event) => this.move(event) });
    this.tag = h("div", { class: "tag", hidden: true, "aria-hidden": "true" });
    document.body.append(this.tag);
    this.draw = this.draw.bind(this);
    window.addEventListener("scroll", this.draw, { passive: true, signal });
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.element);
  }

  close() {
    this.resized.disconnect();
    this.tag.remove();
    this.pages.clear();
  }

  async load() {
    this.generation = (this.generation || 0) + 1;
    this.pages.clear();
    this.total = null;
    for (const tile of this.tiles.values()) tile.remove();
    this.tiles.clear();
    this.element.replaceChildren();
    await attempt(() => this.page(0));
    this.draw();
  }

  page(number) {
    const there = this.pages.get(number);
    if (there) return there;
    const { model, generation } = this;
    const query = new URLSearchParams({ offset: number * PAGE, limit: PAGE, text: wanted.text });
    if (wanted.part !== null) query.set("part", wanted.part);
    if (wanted.code !== null) query.set("code", wanted.code);
    const page = get(`${model.base}/images?${query}`, this.signal).then((found) => {
      if (generation !== this.generation) return [];
      const first = number === 0 && !wanted.text && wanted.part === null ? photos.filter((photo) => photo.run === model.name) : [];
      if (number === 0) {
        this.first = first;
        this.total = found.total + first.length;
        this.onCount(found.total);
      }
      return found.images.map((image) => ({ ...image, url: `${model.base}/images/${image.index}` }));
    });
    this.pages.set(number, page);
    if (this.pages.size > KEPT) this.pages.delete(this.pages.keys().next().value);
    return page;
  }

  async image(place) {
    if (place < this.first.length) return this.first[place];
    const at = place - this.first.length;
    return (await this.page(Math.floor(at / PAGE)))[at % PAGE];
  }

  /** The image with its small pixels and label map; those of one moment are asked for together. */
  withPixels(image) {
    if (!image || image.thumb || image.error) return image;
    return (image.coming ??= new Promise((resolve, reject) => {
      if (!this.asked?.length) {
        this.asked = [];
        queueMicrotask(() => this.askTiles());
      }
      this.asked.push({ image, resolve, reject });
    }));
  }

  askTiles() {
    const { model } = this, all = this.asked;
    this.asked = [];
    for (let start = 0; start < all.length; start += TILES) {
      const some = all.slice(start, start + TILES);
      get(`${model.base}/tiles?v=${model.version}&i=${some.map(({ image }) => image.index).join(",")}`, this.signal)
        .then(({ tiles }) => some.forEach(({ image, resolve }, at) => resolve(withMap(image, tiles[at]))))
        .catch((error) => some.forEach(({ image, reject }) => (delete image.coming, reject(error))));
    }
  }

  layout() {
    const width = this.element.clientWidth;
    const columns = Math.max(2, Math.floor((width + GAP) / (LEAST + GAP)));
    return { columns, side: (width - GAP * (columns - 1)) / columns };
  }

  draw() {
    if (this.total === null) return;
    if (!this.total) {
      this.element.style.height = "";
      this.element.replaceChildren(h("p", { class: "empty" }, this.model.images ? "No image shows that. Try another word or part." : "This model came without its images. Its parts are in the slots: click one to see all kinds."));
      return;
    }
    const { columns, side } = this.layout(), high = side + NAME + GAP / 2;
    this.element.style.height = `${Math.ceil(this.total / columns) * high}px`;
    const top = -this.element.getBoundingClientRect().top;
    const from = Math.max(0, Math.floor((top - innerHeight * 0.6) / high)) * columns;
    const to = Math.min(this.total, Math.ceil((top + innerHeight * 1.6) / high) * columns);
    for (const [place, tile] of this.tiles)
      if ((place < from || place >= to) && !tile.contains(document.activeElement)) {
        tile.remove();
        this.tiles.delete(place);
      }
    for (let place = from; place < to; place++) {
      let tile = this.tiles.get(place);
      if (!tile) {
        tile = h("div", { class: "tile" }, h("div", { class: "frame" }), h("div", { class: "name" }));
        this.tiles.set(place, tile);
        this.element.append(tile);
        this.fill(tile, place);
      }
      const left = (place % columns) * (side + GAP), down = Math.floor(place / columns) * high;
      tile.style.cssText = `left:${left}px;top:${down}px;width:${side}px`;
      tile.firstChild.style.height = `${side}px`;
    }
  }

  async fill(tile, place) {
    const { generation } = this;
    const image = await this.image(place).then((found) => this.withPixels(found)).catch(() => null);
    if (!image || generation !== this.generation || !tile.isConnected) return;
    const frame = tile.firstChild, canvas = h("canvas", { "aria-hidden": "true" });
    if (!image.thumb) {
      tile.lastChild.append(h("span", { title: image.error }, "no longer there"));
      return;
    }
    const shown = image.codes.map((code, part) => (part && code >= 0 ? this.model.parts[part].name : null)).filter(Boolean);
    tile.image = image;
    const fit = h("div", { class: "fit", style: fitting(image) }, h("img", { src: image.thumb, alt: `${image.name}: ${shown.join(", ")}`, draggable: "false" }), canvas);
    frame.append(fit);
    frame.tabIndex = place === this.focused ? 0 : -1;
    frame.setAttribute("role", "button");
    frame.setAttribute("aria-label", `${image.name}: choose among ${shown.join(", ")}`);
    frame.dataset.place = place;
    frame.dataset.index = image.index ?? image.id;
    tile.lastChild.append(h("span", { title: image.name }, image.name), iconButton("zoom", `Look at ${image.name}`, () => this.look(image), { class: "tiny", tabindex: "-1" }));
    paint(canvas, image.map, this.model.colors, { all: wanted.all });
    fit.addEventListener("pointermove", (event) => event.pointerType !== "touch" && this.hover(event, fit, canvas, image));
    fit.addEventListener("pointerleave", () => this.leave(canvas, image));
    fit.addEventListener("click", (event) => this.click(event, fit, canvas, image));
  }

  under(event, frame, image) {
    const box = frame.getBoundingClientRect();
    return partAt(image.map, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }

  hover(event, frame, canvas, image) {
    const part = this.under(event, frame, image);
    if (canvas.part !== part) {
      canvas.part = part;
      paint(canvas, image.map, this.model.colors, { only: part });
    }
    const { name, color } = this.model.parts[part];
    this.tag.replaceChildren(h("i", { class: "dot", style: { "--c": color } }), capitalised(name));
    Object.assign(this.tag.style, { left: `${event.clientX}px`, top: `${event.clientY}px` });
    this.tag.hidden = false;
  }

  leave(canvas, image) {
    canvas.part = undefined;
    paint(canvas, image.map, this.model.colors, { all: wanted.all });
    this.tag.hidden = true;
  }

  click(event, frame, canvas, image) {
    const part = this.under(event, frame, image);
    take(this.model, image, part, event.shiftKey);
    if (event.pointerType === "touch") {
      paint(canvas, image.map, this.model.colors, { only: part });
      setTimeout(() => this.leave(canvas, image), 900);
    }
  }

  repaint() {
    for (const tile of this.tiles.values()) if (tile.image) paint(tile.querySelector("canvas"), tile.image.map, this.model.colors, { all: wanted.all });
  }

  move(event) {
    const { columns } = this.layout();
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const tile = this.tiles.get(this.focused);
    if ((event.key === "Enter" || event.key === " ") && event.target.classList.contains("frame")) {
      event.preventDefault();
      if (event.target.closest(".tile").image) this.look(event.target.closest(".tile").image);
    }
    if (!step || !event.target.classList.contains("frame")) return;
    const next = Math.min(Math.max(this.focused + step, 0), this.total - 1);
    event.preventDefault();
    if (tile) tile.firstChild.tabIndex = -1;
    this.focused = next;
    const focus = (tries) => {
      this.draw();
      const frame = this.tiles.get(next)?.firstChild;
      if (!frame) return tries && setTimeout(() => focus(tries - 1), 50);
      frame.tabIndex = 0;
      frame.focus({ preventScroll: true });
      frame.scrollIntoView({ block: "nearest" });
    };
    focus(10);
  }

  /** One image, large, with its parts as a list and other images that have the same. */
  async look(found) {
    const { model } = this;
    const image = await attempt(() => this.withPixels(found));
    if (!image?.map) return;
    const canvas = h("canvas", { "aria-hidden": "true" });
    const frame = h("div", { class: "frame" }, h("img", { src: `${image.url}/large.jpg?v=${model.version}`, alt: image.name }), canvas);
    const others = h("div", {});
    const said = h("p", { class: "quiet", role: "status" }, "Click a part of the image, or choose it here.");
    const choose = async (part) => {
      take(model, image, part);
      const { name, variants } = model.parts[part];
      const variant = variants.find(({ code }) => code === image.codes[part]);
      said.textContent = `${capitalised(name)} taken.`;
      const found = await get(`${model.base}/images?${new URLSearchParams({ part, code: image.codes[part], limit: 12 })}`, this.signal).catch(() => null);
      if (!found || !others.isConnected) return;
      others.replaceChildren(
        h("h3", { style: { "margin-top": "16px" } }, `The same ${name}`, h("span", { class: "quiet" }, ` in ${plural(variant?.count ?? found.total, "image")}`)),
        h("div", { class: "strip", style: { "--c": model.parts[part].color } },
          found.images.filter(({ index }) => index !== image.index).slice(0, 11).map((other) =>
            h("button", { type: "button", "aria-label": other.name, title: other.name, onclick: () => (box.close(), this.look({ ...other, url: `${model.base}/images/${other.index}` })) },
              h("img", { src: `${model.base}/images/${other.index}/parts/${part}.jpg?v=${model.version}`, alt: "" })))),
        h("button", { type: "button", class: "button small", onclick: () => (box.close(), this.onFilter(part, image.codes[part])) }, "Show them all"),
      );
    };
    const list = h("ul", { class: "part-list" },
      image.codes.map((code, part) => code >= 0 && h("li", {},
        h("button", {
          type: "button", class: "part-button", style: { "--c": model.parts[part].color }, data: { part },
          onclick: () => choose(part), onpointerenter: () => paint(canvas, image.map, model.colors, { only: part }), onpointerleave: () => paint(canvas, image.map, model.colors),
          onfocus: () => paint(canvas, image.map, model.colors, { only: part }), onblur: () => paint(canvas, image.map, model.colors),
        }, h("img", { src: `${image.url}/parts/${part}.jpg?v=${model.version}`, alt: "" }), h("span", {}, capitalised(model.parts[part].name), h("small", {}, `kind ${code}`))))));
    if (image.codes[0] >= 0) list.append(list.firstChild); // the background last, as in the tray
    frame.addEventListener("pointermove", (event) => this.hover(event, frame, canvas, image));
    frame.addEventListener("pointerleave", () => (this.leave(canvas, image), paint(canvas, image.map, model.colors)));
    frame.addEventListener("click", (event) => choose(this.under(event, frame, image)));
    const box = dialog(image.name, h("div", { class: "view" }, frame, h("div", {}, said, h("div", { style: { height: "10px" } }), list, others)));
    box.append(this.tag); // a dialog lies above everything else
    box.addEventListener("close", () => ((this.tag.hidden = true), document.body.append(this.tag)));
  }
}

