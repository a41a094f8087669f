// A row, given or decoded, as something to look at.

export const number = (v) => (v === null || Number.isNaN(v) ? "–" : Number(v.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 }));

export function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function cell(column, value, share) {
  if (value === null || Number.isNaN(value)) return "missing";
  if (column.kind === "categorical") return (column.categories[Math.round(value)] ?? String(value)) + (share ? ` (${Math.round(100 * share)} %)` : "");
  if (column.kind === "boolean") return value < 1e-6 ? "false" : value > 1 - 1e-6 ? "true" : `true with ${Math.round(100 * value)} %`;
  if (column.kind === "date") return new Date(value * 864e5).toISOString().slice(0, 10);
  return number(value);
}

export function picture(row, values, words) {
  const [height, width] = row.shape.slice(-2);
  const depth = row.shape.length === 3 ? row.shape[0] : 1;
  const canvas = element("canvas", undefined, { width, height, role: "img", "aria-label": words, class: "pixels" });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const span = row.high - row.low || 1;
  for (let i = 0; i < width * height; i++)
    for (let c = 0; c < 4; c++) {
      const v = values[(depth === 3 ? c * width * height : 0) + i];
      image.data[4 * i + c] = c === 3 ? 255 : 255 * Math.min(Math.max((v - row.low) / span, 0), 1);
    }
  context.putImageData(image, 0, 0);
  return canvas;
}

// A bar for each column: how many standard deviations of the data it is above or below their mean.
export function bars(row, { values, shares }) {
  const table = element("table", undefined, { class: "bars" });
  row.columns.forEach((column, i) => {
    const line = table.insertRow();
    line.append(element("th", column.name, { scope: "row" }), element("td", cell(column, values[i], shares && shares[i])));
    const away = column.kind === "categorical" ? 0 : (values[i] - row.mean[i]) / (row.spread[i] || 1);
    const bar = element("td", undefined, { class: "bar", "aria-hidden": "true" });
    const fill = element("i");
    const half = Math.min(Math.abs(away) / 3, 1) * 50 || 0;
    fill.style.width = `${half}%`;
    fill.style.left = `${away < 0 ? 50 - half : 50}%`;
    if (column.kind !== "categorical") bar.append(fill);
    line.append(bar);
  });
  return table;
}

// Several rows side by side, a line for each column.
export function side(row, decoded, head) {
  const table = element("table", undefined, { class: "side" });
  const top = table.createTHead().insertRow();
  top.append(element("th", "column", { scope: "col" }), ...decoded.map((_, i) => element("th", `${head} ${i + 1}`, { scope: "col" })));
  const body = table.createTBody();
  row.columns.forEach((column, i) => {
    const cells = decoded.map(({ values, shares }) => element("td", cell(column, values[i], shares && shares[i])));
    body.insertRow().append(element("th", column.name, { scope: "row" }), ...cells);
  });
  return table;
}

export function show(row, decoded, words) {
  return row.image ? picture(row, decoded.values, words) : bars(row, decoded);
}

export function sentence(row, decoded) {
  if (row.image) {
    const values = Array.from(decoded.values);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const bright = values.filter((v) => v > (row.low + row.high) / 2).length / values.length;
    return `It decodes to an image of mean ${number(mean)}, with ${Math.round(100 * bright)} % of pixels in the upper half of the range.`;
  }
  const away = row.columns.map((column, i) => [column.kind === "categorical" ? 0 : Math.abs(decoded.values[i] - row.mean[i]) / (row.spread[i] || 1), i]);
  const most = away.sort((a, b) => b[0] - a[0]).slice(0, 3);
  return `It decodes to ${most.map(([, i]) => `${row.columns[i].name} ${cell(row.columns[i], decoded.values[i], decoded.shares && decoded.shares[i])}`).join(", ")}.`;
}
