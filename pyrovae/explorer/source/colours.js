// What colour a point has, and the legend that says so.
import { quantile } from "./densities.js";

const STOPS = [[0, 32, 76], [46, 71, 108], [87, 93, 109], [125, 124, 120], [165, 156, 116], [210, 193, 95], [255, 233, 69]]; // cividis

function along(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const i = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[i].map((v, c) => Math.round(v + (at - i) * (STOPS[i + 1][c] - v)));
}

const fromHex = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
export const GREY = [140, 140, 140];

export function colouring(held, values, palette) {
  if (held.kind === "class") {
    const colours = palette.map(fromHex);
    const of = (v) => (Number.isNaN(v) ? GREY : colours[v % colours.length]);
    const counts = new Map();
    for (const v of values) counts.set(v, (counts.get(v) || 0) + 1);
    const entries = [...counts.keys()].filter((v) => !Number.isNaN(v)).sort((a, b) => a - b);
    return { of, entries: entries.map((v) => [held.names[v] ?? String(v), of(v)]), repeats: held.names.length > colours.length };
  }
  const known = values.filter((v) => !Number.isNaN(v));
  if (!known.length) return { of: () => GREY, low: NaN, high: NaN };
  const [low, high] = [quantile(known, 0.01), quantile(known, 0.99)];
  const span = high > low ? high - low : 1;
  return { of: (v) => (Number.isNaN(v) ? GREY : along((v - low) / span)), low, high, ramp: STOPS, missing: values.length - known.length };
}
