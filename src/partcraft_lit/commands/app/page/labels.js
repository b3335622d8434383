// Which part is under a pixel. A label map is coarse; memberships are interpolated between the centres of its cells, as the
// server does for its overlays, so that what is outlined is what a click takes.

const SIDE = 112;

/** {w, h, data, window} with base64 cells -> with bytes. */
export function decode(map) {
  if (!map.cells) map.cells = Uint8Array.from(atob(map.data), (sign) => sign.charCodeAt(0));
  return map;
}

/** Part at (x, y), both 0...1 across the image; the ends of a very long image are background, as nothing reads them. */
export function partAt(map, x, y) {
  const { w, h, cells } = decode(map);
  const [first, upper, wide, high] = map.window;
  x = (x - first) / wide;
  y = (y - upper) / high;
  if (x < 0 || y < 0 || x >= 1 || y >= 1) return 0;
  const column = Math.min(Math.max(x * w - 0.5, 0), w - 1), row = Math.min(Math.max(y * h - 0.5, 0), h - 1);
  const left = Math.floor(column), top = Math.floor(row);
  const right = Math.min(left + 1, w - 1), below = Math.min(top + 1, h - 1);
  const across = column - left, down = row - top;
  const corners = [
    [cells[top * w + left], (1 - across) * (1 - down)],
    [cells[top * w + right], across * (1 - down)],
    [cells[below * w + left], (1 - across) * down],
    [cells[below * w + right], across * down],
  ];
  let best = corners[0][0], most = -1;
  for (const [part] of corners) {
    const share = corners.reduce((sum, [other, weight]) => sum + (other === part ? weight : 0), 0);
    if (share > most + 1e-9 || (Math.abs(share - most) < 1e-9 && part < best)) [best, most] = [part, share];
  }
  return best;
}

function fine(map) {
  if (!map.fine) {
    map.fine = new Uint8Array(SIDE * SIDE);
    for (let row = 0; row < SIDE; row++)
      for (let column = 0; column < SIDE; column++)
        map.fine[row * SIDE + column] = partAt(map, (column + 0.5) / SIDE, (row + 0.5) / SIDE);
  }
  return map.fine;
}

function rgb(color) {
  return [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
}

/** Paints the parts over an image. `only`: this part alone, bright, the rest dimmed; otherwise all parts tinted. */
export function paint(canvas, map, colors, { only = null, all = false } = {}) {
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  if (only === null && !all) return;
  const labels = fine(map), image = context.createImageData(SIDE, SIDE);
  const palette = colors.map(rgb);
  for (let place = 0; place < labels.length; place++) {
    const part = labels[place], column = place % SIDE;
    const edge =
      (column + 1 < SIDE && labels[place + 1] !== part) || (place + SIDE < labels.length && labels[place + SIDE] !== part) ||
      (column > 0 && labels[place - 1] !== part) || (place >= SIDE && labels[place - SIDE] !== part);
    const near = only !== null && edge && [part, labels[place + 1], labels[place - 1], labels[place + SIDE], labels[place - SIDE]].includes(only);
    let color, alpha;
    if (near) [color, alpha] = [palette[only], 255];
    else if (only !== null) [color, alpha] = part === only ? [palette[only], 26] : [[18, 20, 26], 92];
    else if (edge && part) [color, alpha] = [[255, 255, 255], 210];
    else [color, alpha] = part ? [palette[part], 125] : [[0, 0, 0], 0];
    image.data.set([...color, alpha], place * 4);
  }
  context.putImageData(image, 0, 0);
}
