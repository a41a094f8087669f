// The page: what is looked at, where the point is, and what is said of it.
import { unpack } from "./arrays.js";
import { GREY, colouring } from "./colours.js";
import { Normals, quantile } from "./densities.js";
import { decoderOf } from "./network.js";
import { Grid, Plane, holesOf, shade } from "./planes.js";
import { Points } from "./points.js";
import { element, number, sentence, show, side } from "./rows.js";

const held = JSON.parse(document.getElementById("facts").textContent);
const at = (id) => document.getElementById(id);
const loc = unpack(held.loc);
const count = held.loc.shape[0];
const dim = held.loc.shape[1];
const rows = unpack(held.rows);
const codeOf = (n) => loc.subarray(n * dim, (n + 1) * dim);
const places = held.map && unpack(held.map.places);
const colours = held.colours.map((c) => ({ ...c, values: unpack(c.values) }));
const given = held.row.values && unpack(held.row.values);
const rowSize = held.row.shape.reduce((a, b) => a * b, 1);
const decoder = decoderOf(held.decoder, dim);
const qAgg = new Normals({
  logWeight: held.log_weight ? unpack(held.log_weight) : new Float64Array(held.train).fill(-Math.log(held.train)),
  loc: loc.subarray(0, held.train * dim),
  root: unpack(held.log_scale).map(Math.exp),
  full: false,
});
const inContours = Object.fromEntries(Object.entries(held.densities).map(([n, d]) => [n, Normals.from(d)]));
const evaluated = { q_agg: qAgg, prior: inContours.prior, "ex-post": inContours["ex-post"] };
const draws = chunk(unpack(held.prior_draws));
const inside = chunk(unpack(held.inside));
const points = new Points(at("points"));
const over = at("over");
const pen = over.getContext("2d");
const labels = colours.find((c) => c.name === "label");

const state = { z: null, mark: [0, 0], from: null, view: { x: 0, y: 0, scale: 1 }, selected: null, trail: null, seed: 1, last: null };

function chunk(values) {
  return Array.from({ length: values.length / dim }, (_, i) => values.subarray(i * dim, (i + 1) * dim));
}

// -- the plane -----------------------------------------------------------------------------------

let plane = null; // null on the map of neighbours, where a place is no code
let marginal = null;
let drawn = {};
let coordinates = new Float32Array(2 * count);

function choosePlane() {
  const kind = at("view").value;
  at("across").disabled = at("up").disabled = at("rest").disabled = kind === "map";
  plane = kind === "map" ? null : planeOf(kind);
  for (let n = 0; n < count; n++)
    coordinates.set(plane ? plane.place(codeOf(n)) : places.subarray(2 * n, 2 * n + 2), 2 * n);
  marginal = plane && qAgg.inPlane(plane);
  drawn = {};
  points.setPlaces(coordinates);
  showAll();
  if (state.z) settle(state.z);
}

function planeOf(kind) {
  const [a, b] = [Number(at("across").value), Number(at("up").value)];
  const names = [at("across"), at("up")].map((s) => s.selectedOptions[0].textContent);
  if (kind === "components") return new Plane(held.components.directions[a], held.components.directions[b], held.components.centre, names);
  const unit = (k) => Array.from({ length: dim }, (_, d) => (d === k ? 1 : 0));
  return new Plane(unit(a), unit(b), new Float64Array(dim), names);
}

function fillAxes() {
  const kind = at("view").value;
  if (kind === "map") return;
  const share = held.components.share;
  const names = Array.from({ length: kind === "units" ? dim : share.length }, (_, d) =>
    kind === "units" ? `unit ${d}` : `component ${d + 1} (${Math.round(100 * share[d])} %)`);
  const order = spreadUnits();
  ["across", "up"].forEach((id, i) => {
    at(id).replaceChildren(...names.map((name, d) => element("option", name, { value: d })));
    at(id).value = kind === "units" ? order[i] : i;
  });
}

// The units by the variance of the codes, the largest first.
function spreadUnits() {
  const variance = Array.from({ length: dim }, (_, d) => {
    let [sum, square] = [0, 0];
    for (let n = 0; n < held.train; n++) {
      sum += loc[n * dim + d];
      square += loc[n * dim + d] ** 2;
    }
    return square / held.train - (sum / held.train) ** 2;
  });
  return variance.map((v, d) => [v, d]).sort((a, b) => b[0] - a[0]).map((pair) => pair[1]);
}

function box() {
  const ends = [0, 1].map((c) => {
    const values = coordinates.filter((_, i) => i % 2 === c);
    return [quantile(values, 0.002), quantile(values, 0.998)];
  });
  const pad = 0.12 * Math.max(ends[0][1] - ends[0][0], ends[1][1] - ends[1][0]);
  return [ends[0][0] - pad, ends[1][0] - pad, ends[0][1] + pad, ends[1][1] + pad];
}

function showAll() {
  const [left, low, right, high] = box();
  const { width, height } = over.getBoundingClientRect();
  state.view = { x: (left + right) / 2, y: (low + high) / 2, scale: Math.min(width / (right - left || 1), height / (high - low || 1)) };
  draw();
}

function gridOf(name) {
  drawn[name] ??= (() => {
    const [left, low, right, high] = box();
    const [w, h] = [right - left, high - low];
    const inPlane = inContours[name].inPlane(plane);
    const grid = new Grid(inPlane, [left - w / 2, low - h / 2, right + w / 2, high + h / 2]);
    return { inPlane, grid, lines: grid.contours() };
  })();
  return drawn[name];
}

// -- drawing -------------------------------------------------------------------------------------

const toScreen = (u, v) => {
  const { width, height } = over.getBoundingClientRect();
  return [width / 2 + (u - state.view.x) * state.view.scale, height / 2 - (v - state.view.y) * state.view.scale];
};
const toPlane = (x, y) => {
  const { width, height } = over.getBoundingClientRect();
  return [state.view.x + (x - width / 2) / state.view.scale, state.view.y - (y - height / 2) / state.view.scale];
};
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame((now) => {
    waiting = false;
    const whole = !moving || frameTime < QUICK;
    if (whole) drawNow();
    else drawMoved();
    if (moving) requestAnimationFrame((next) => shown(whole ? next - now : frameTime));
  });
}

function drawNow() {
  kept = null;
  const { width, height } = fit(at("points"), over);
  at("points").style.visibility = "";
  points.draw(state.view, ratio());
  pen.clearRect(0, 0, width, height);
  if (plane) drawDensities(pen);
  drawAxes(width, height);
  drawMarks();
}

const ratio = () => window.devicePixelRatio || 1;

function fit(...canvases) {
  const frame = over.getBoundingClientRect();
  const [w, h] = [frame.width, frame.height].map((side) => Math.round(side * ratio()));
  for (const canvas of canvases) if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  pen.setTransform(ratio(), 0, 0, ratio(), 0, 0);
  return frame;
}

// While the view moves and whole pictures come slowly, the last one is moved; at rest it is drawn anew.
const QUICK = 25; // milliseconds between frames
const REST = 150; // milliseconds without movement
let moving = false;
let rest = 0; // the timer
let frameTime = 0; // milliseconds that whole pictures took of late in movements
let kept = null;

function moved() {
  clearTimeout(rest);
  moving = true;
  draw();
}

function shown(time) {
  frameTime += (time - frameTime) / 2;
  if (waiting) return;
  clearTimeout(rest);
  rest = setTimeout(() => {
    moving = false;
    frameTime /= 2; // one slow picture is forgotten, a slow machine is not
    draw();
  }, REST);
}

function drawMoved() {
  const { width, height } = fit(over);
  if (!kept || !stillShows(kept, width, height)) kept = keep();
  const { picture, left, top, scale } = kept;
  const [x, y] = toScreen(left, top);
  const grown = state.view.scale / scale;
  pen.imageSmoothingEnabled = false; // a fifth of a frame without a graphics processor
  pen.clearRect(0, 0, width, height);
  pen.drawImage(picture, x, y, grown * width, grown * height);
  drawAxes(width, height);
  drawMarks();
}

// The points and the lines as they are now, in one picture; the points' own canvas is not needed meanwhile.
function keep() {
  const picture = element("canvas");
  fit(at("points"), picture);
  points.draw(state.view, ratio(), true);
  at("points").style.visibility = "hidden";
  const on = picture.getContext("2d");
  on.drawImage(at("points"), 0, 0);
  on.setTransform(ratio(), 0, 0, ratio(), 0, 0);
  if (plane) drawDensities(on);
  const [left, top] = toPlane(0, 0);
  return { picture, left, top, scale: state.view.scale };
}

// Whether the kept picture fills most of the frame, and is not much coarser than another would be.
function stillShows({ left, top, scale }, width, height) {
  const [x, y] = toScreen(left, top);
  const grown = state.view.scale / scale;
  const along = (from, size) => Math.min(from + grown * size, size) - Math.max(from, 0);
  return grown < 2 && along(x, width) > 0.7 * width && along(y, height) > 0.7 * height;
}

function drawDensities(on) {
  if (at("show-holes").checked) {
    drawn.holes ??= (() => {
      const [inner, outer] = [gridOf("q_agg"), gridOf("prior")];
      const found = holesOf(inner.inPlane, outer.inPlane, inside.map((z) => plane.place(z)), draws.map((z) => plane.place(z)));
      return { ...found, image: shade(found, inner.grid, outer.grid, [194, 65, 12, 60]), box: inner.grid.box };
    })();
    const [left, low, right, high] = drawn.holes.box;
    const [[x0, y0], [x1, y1]] = [toScreen(left, high), toScreen(right, low)];
    on.imageSmoothingEnabled = true;
    on.drawImage(drawn.holes.image, x0, y0, x1 - x0, y1 - y0);
  }
  for (const [name, dash] of [["q_agg", []], ["prior", [7, 4]], ["ex-post", [2, 3]]]) {
    if (!at(`show-${name}`).checked) continue;
    on.strokeStyle = style(`--${name}`);
    on.setLineDash(dash);
    gridOf(name).lines.forEach((segments, i) => {
      on.lineWidth = [1.8, 1.3, 0.8][i];
      on.beginPath();
      for (const [a, b, c, d] of segments) {
        on.moveTo(...toScreen(a, b));
        on.lineTo(...toScreen(c, d));
      }
      on.stroke();
    });
  }
  on.setLineDash([]);
}

function drawAxes(width, height) {
  pen.font = "12px system-ui, sans-serif";
  pen.fillStyle = style("--soft");
  if (!plane) return;
  const step = niceStep(70 / state.view.scale);
  const [left, low] = toPlane(0, height);
  const [right, high] = toPlane(width, 0);
  for (let u = Math.ceil(left / step) * step; u < right; u += step) {
    const x = toScreen(u, 0)[0];
    if (x > 20 && x < width - 165) pen.fillText(number(Math.abs(u) < step / 2 ? 0 : u), x, height - 6);
  }
  for (let v = Math.ceil(low / step) * step; v < high; v += step) {
    const y = toScreen(0, v)[1];
    if (y > 30 && y < height - 24) pen.fillText(number(Math.abs(v) < step / 2 ? 0 : v), 5, y);
  }
  pen.textAlign = "right";
  pen.fillText(`${plane.names[0]} →`, width - 6, height - 6);
  pen.textAlign = "left";
  pen.fillText(`↑ ${plane.names[1]}`, 5, 16);
}

function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((k) => k * power).find((step) => step >= least);
}

function drawMarks() {
  const ink = style("--ink");
  const paper = style("--paper");
  if (state.trail && state.trail.length > 1) {
    pen.beginPath();
    state.trail.forEach(([u, v], i) => pen[i ? "lineTo" : "moveTo"](...toScreen(u, v)));
    if (mode() === "lasso") pen.closePath();
    for (const [colour, wide] of [[paper, 4], [ink, 1.5]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = wide;
      pen.stroke();
    }
  }
  const [x, y] = toScreen(...state.mark);
  for (const [colour, wide] of [[paper, 5], [ink, 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = wide;
    pen.beginPath();
    pen.arc(x, y, 8, 0, 7);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 8 * dx, y + 8 * dy);
      pen.lineTo(x + 15 * dx, y + 15 * dy);
    }
    pen.stroke();
  }
}

function paint() {
  const chosen = colours[at("colour").value];
  const scheme = colouring(chosen, chosen.values, held.palette);
  const shades = new Uint8Array(4 * count);
  const alpha = count > 20000 ? 150 : 205;
  for (let n = 0; n < count; n++) {
    const out = state.selected && !state.selected.has(n);
    shades.set([...(out ? GREY : scheme.of(chosen.values[n])), out ? 40 : Number.isNaN(chosen.values[n]) ? 70 : alpha], 4 * n);
  }
  points.setColours(shades);
  legend(chosen, scheme);
  draw();
}

function legend(chosen, scheme) {
  const parts = [];
  if (scheme.entries) {
    for (const [name, rgb] of scheme.entries) {
      const key = element("span", undefined, { class: "key" });
      const dot = element("i");
      dot.style.background = `rgb(${rgb})`;
      key.append(dot, name);
      parts.push(key);
    }
    if (scheme.repeats) parts.push(element("span", "Colours repeat: the list at the point has the names."));
  } else {
    const ramp = element("span", undefined, { class: "ramp" });
    ramp.style.background = `linear-gradient(90deg, ${(scheme.ramp || [GREY]).map((c) => `rgb(${c})`).join(", ")})`;
    parts.push(element("span", `${chosen.name}: ${number(scheme.low)}`), ramp, element("span", number(scheme.high)));
    const grey = scheme.missing ? ` Grey: the ${scheme.missing.toLocaleString("en")} ${chosen.missing}.` : "";
    parts.push(element("span", `${chosen.words ? `(${chosen.words}) ` : ""}Colours end at the 1 % and 99 % quantiles.${grey}`));
  }
  at("legend").replaceChildren(...parts);
}

// -- the point -----------------------------------------------------------------------------------

// The code at a place of the plane; on the map of neighbours, that of the nearest row.
function codeAt(u, v) {
  if (!plane) return Float64Array.from(codeOf(nearestOnScreen(u, v)));
  const kept = at("rest").value === "kept" && state.z;
  return plane.move(kept ? state.z : qAgg.lift(plane, marginal, u, v), u, v);
}

function nearestOnScreen(u, v) {
  let [best, least] = [0, Infinity];
  for (let n = 0; n < count; n++) {
    const distance = (coordinates[2 * n] - u) ** 2 + (coordinates[2 * n + 1] - v) ** 2;
    if (distance < least) [best, least] = [n, distance];
  }
  return best;
}

function goTo(u, v) {
  if (!plane) [u, v] = coordinates.subarray(2 * nearestOnScreen(u, v), 2 * nearestOnScreen(u, v) + 2);
  state.z = codeAt(u, v);
  state.mark = [u, v];
  describe();
}

function settle(z) {
  state.z = Float64Array.from(z);
  if (plane) state.mark = plane.place(z);
  else {
    let [best, least] = [0, Infinity];
    for (let n = 0; n < count; n++) {
      const distance = codeOf(n).reduce((sum, v, d) => sum + (v - z[d]) ** 2, 0);
      if (distance < least) [best, least] = [n, distance];
    }
    state.mark = [...coordinates.subarray(2 * best, 2 * best + 2)];
  }
  describe();
}

const DENSITIES = { q_agg: "q_agg", prior: "prior", "ex-post": "ex-post prior" };

function describe() {
  draw();
  const decoded = decoder.decode(state.z);
  at("decoded").replaceChildren(show(held.row, decoded, "the decoded image"));
  const logs = Object.entries(evaluated).map(([name, density]) => [name, density.logProb(state.z)]);
  at("densities").tBodies[0].replaceChildren(...logs.map(([name, value]) => {
    const line = element("tr");
    const words = name !== "q_agg" && evaluated[name].words ? ` (${evaluated[name].words})` : "";
    line.append(element("th", DENSITIES[name] + words, { scope: "row" }), element("td", value.toFixed(2)));
    return line;
  }));
  const found = nearest();
  at("nearest").replaceChildren(...found.map(([n, share]) => exemplar(n, share)));
  const plain = (i) => `${plane.names[i].replace(/ \(.*/, "")} ${number(state.mark[i])}`;
  const where = plane ? `At ${plain(0)}, ${plain(1)}` : `On the code of row ${rows[nearestOnScreen(...state.mark)]}`;
  const best = logs.reduce((a, b) => (b[1] > a[1] ? b : a))[0];
  at("said").textContent = `${where}. ${sentence(held.row, decoded)} Of the three densities, ${DENSITIES[best]} is highest there; row ${rows[found[0][0]]} explains it best (${Math.round(100 * found[0][1])} %).`;
}

function nearest(k = 5) {
  const shares = qAgg.responsibilities(state.z);
  const order = [];
  for (let n = 0; n < shares.length; n++) {
    if (order.length === k && shares[n] <= shares[order[k - 1]]) continue;
    order.push(n);
    order.sort((a, b) => shares[b] - shares[a]);
    order.length = Math.min(order.length, k);
  }
  return order.map((n) => [n, shares[n]]);
}

const nameOf = (n) => `row ${rows[n]}${held.ids ? `, ${held.ids[n]}` : ""}`;
const labelOf = (n) => (labels ? `, ${labels.names[labels.values[n]]}` : "");

function exemplar(n, share) {
  const item = element("li", undefined, held.row.image ? {} : { class: "wide" });
  const words = `${nameOf(n)}${labelOf(n)}: ${share < 0.001 ? "below 0.1" : (100 * share).toFixed(1)} %`;
  const row = given ? { values: given.slice(n * rowSize, (n + 1) * rowSize) } : decoder.decode(codeOf(n));
  const kind = given ? "as it is in the data" : "its code decoded, as the rows are not in this page";
  const shown = show(held.row, row, `${nameOf(n)}, ${kind}`);
  if (held.row.image) {
    const text = element("span", words);
    text.append(element("br"), element("span", kind, { class: "note" }));
    item.append(shown, text);
    return item;
  }
  const more = element("details");
  more.append(element("summary", words), element("p", kind, { class: "note" }), shown);
  item.append(more);
  return item;
}

// -- lines, selections, samples ------------------------------------------------------------------

function strip(place, codes, words, heads) {
  const decoded = codes.map((z) => decoder.decode(z));
  if (held.row.image) place.replaceChildren(...decoded.map((row, i) => show(held.row, row, words(i))));
  else place.replaceChildren(side(held.row, decoded, heads));
}

function interpolate(start, end) {
  const codes = Array.from({ length: 9 }, (_, i) => start.map((v, d) => v + (i / 8) * (end[d] - v)));
  at("line-part").hidden = false;
  const logs = codes.map((z) => qAgg.logProb(z));
  const lowest = logs.indexOf(Math.min(...logs));
  at("line-words").textContent = `Nine codes from the start to the end of the line. log q_agg falls to ${number(logs[lowest])} at code ${lowest + 1}.`;
  strip(at("line"), codes, (i) => `code ${i + 1} of 9 along the line`, "code");
  tell(at("line-words").textContent);
}

function select(found) {
  state.selected = found.length ? new Set(found) : null;
  at("lasso-part").hidden = !found.length;
  paint();
  if (!found.length) return tell("No row is selected.");
  const mean = new Float64Array(dim);
  for (const n of found) codeOf(n).forEach((v, d) => (mean[d] += v / found.length));
  const size = `${found.length.toLocaleString("en")} of ${count.toLocaleString("en")} rows`;
  at("lasso-words").textContent = `${size} are selected. The mean of their codes decodes to:`;
  at("lasso-mean").replaceChildren(show(held.row, decoder.decode(mean), "the decoded mean of the selected codes"));
  const table = at("lasso-classes");
  table.replaceChildren();
  const classes = labels || colours.find((c) => c.kind === "class");
  const shares = new Map();
  for (const n of found) shares.set(classes.values[n], (shares.get(classes.values[n]) || 0) + 1);
  table.append(element("caption", classes.name));
  for (const [value, share] of [...shares].sort((a, b) => b[1] - a[1])) {
    const line = table.insertRow();
    line.append(element("th", classes.names[value] ?? "none", { scope: "row" }), element("td", `${share.toLocaleString("en")} (${((100 * share) / found.length).toFixed(1)} %)`));
  }
  const [first] = table.rows;
  tell(`${size} are selected. Most of one ${classes.name}: ${[...first.cells].map((c) => c.textContent).join(", ")}.`);
}

function withinLasso(trail) {
  const found = [];
  for (let n = 0; n < count; n++) {
    const [x, y] = [coordinates[2 * n], coordinates[2 * n + 1]];
    let odd = false;
    for (let i = 0, j = trail.length - 1; i < trail.length; j = i++) {
      const [[a, b], [c, d]] = [trail[i], trail[j]];
      if (b > y !== d > y && x < ((c - a) * (y - b)) / (d - b) + a) odd = !odd;
    }
    if (odd) found.push(n);
  }
  return found;
}

function nearestRows(k) {
  const [u, v] = state.mark;
  const distance = Float64Array.from({ length: count }, (_, n) => (coordinates[2 * n] - u) ** 2 + (coordinates[2 * n + 1] - v) ** 2);
  const reach = quantile(distance, (Math.min(k, count) - 1) / count);
  return [...distance.keys()].filter((n) => distance[n] <= reach);
}

function save() {
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const lines = [...state.selected].sort((a, b) => rows[a] - rows[b]).map((n) => (held.ids ? `${rows[n]},${quoted(held.ids[n])}` : rows[n]));
  const text = `${held.ids ? "row,id" : "row"}\n${lines.join("\n")}\n`;
  const link = element("a", undefined, { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: "rows.csv" });
  link.click();
  tell("The numbers of the selected rows are saved in rows.csv.");
}

function random() {
  state.seed = (state.seed + 0x6d2b79f5) | 0;
  let t = Math.imul(state.seed ^ (state.seed >>> 15), 1 | state.seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}

const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

// A row in proportion to its responsibility for the point, then a code from its q(z | x).
function sampleHere() {
  const shares = qAgg.responsibilities(state.z);
  const codes = Array.from({ length: 8 }, () => {
    let left = random();
    let n = 0;
    while (n < shares.length - 1 && (left -= shares[n]) > 0) n++;
    return Float64Array.from(codeOf(n), (v, d) => v + qAgg.root[n * dim + d] * normal());
  });
  strip(at("samples"), codes, (i) => `sample ${i + 1} of 8`, "sample");
  tell("Eight samples from around the point are shown below the log densities.");
}

// -- pointer and keys ----------------------------------------------------------------------------

const mode = () => document.querySelector("input[name=mode]:checked").value;
const touches = new Map();
const local = (event) => {
  const frame = over.getBoundingClientRect();
  return [event.clientX - frame.left, event.clientY - frame.top];
};

function zoom(factor, x, y) {
  const before = toPlane(x, y);
  state.view.scale *= factor;
  const after = toPlane(x, y);
  state.view.x += before[0] - after[0];
  state.view.y += before[1] - after[1];
  moved();
}

function press(event) {
  over.setPointerCapture(event.pointerId);
  touches.set(event.pointerId, local(event));
  state.trail = null;
  if (touches.size > 1) return;
  const spot = toPlane(...local(event));
  if (mode() === "point") goTo(...spot);
  else if (mode() !== "pan") state.trail = [spot];
  if (mode() === "line") goTo(...spot);
  state.from = state.z;
}

function move(event) {
  if (!touches.has(event.pointerId)) return;
  const [before, now] = [touches.get(event.pointerId), local(event)];
  if (touches.size === 2) {
    const other = [...touches].find(([id]) => id !== event.pointerId)[1];
    const length = ([x, y]) => Math.hypot(x - other[0], y - other[1]);
    zoom(length(now) / Math.max(length(before), 1), ...other);
  } else if (mode() === "pan") {
    state.view.x -= (now[0] - before[0]) / state.view.scale;
    state.view.y += (now[1] - before[1]) / state.view.scale;
    moved();
  } else if (mode() === "point") goTo(...toPlane(...now));
  else if (mode() === "lasso" && state.trail) state.trail.push(toPlane(...now));
  else if (state.trail) state.trail = [state.trail[0], toPlane(...now)];
  touches.set(event.pointerId, now);
  draw();
}

function release(event) {
  if (!touches.delete(event.pointerId) || touches.size || !state.trail) return;
  if (mode() === "lasso") select(state.trail.length > 2 ? withinLasso(state.trail) : []);
  if (mode() === "line" && state.trail.length > 1) {
    goTo(...state.trail[1]);
    interpolate(state.from, state.z);
  }
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const KEYS = {
  "+": () => magnify(1.25),
  "=": () => magnify(1.25),
  "-": () => magnify(0.8),
  0() {
    showAll();
    tellView();
  },
  n() {
    settle(codeOf(nearestOnScreen(...state.mark)));
    follow();
  },
  l: () => select(nearestRows(50)),
  s: sampleHere,
  i() {
    if (state.last) interpolate(state.last, state.z);
    state.last = state.z;
  },
};

function magnify(factor) {
  zoom(factor, ...toScreen(...state.mark));
  tellView();
}

function tellView() {
  const { width, height } = over.getBoundingClientRect();
  const [left, high] = toPlane(0, 0);
  const [right, low] = toPlane(width, height);
  let seen = 0;
  for (let n = 0; n < count; n++) {
    const [u, v] = [coordinates[2 * n], coordinates[2 * n + 1]];
    if (u > left && u < right && v > low && v < high) seen++;
  }
  tell(`The map shows ${seen.toLocaleString("en")} of ${count.toLocaleString("en")} rows.`);
}

// The map moves with a point that leaves it.
function follow() {
  const { width, height } = over.getBoundingClientRect();
  const [x, y] = toScreen(...state.mark);
  const beyond = (v, size) => Math.min(v - 24, 0) + Math.max(v - size + 24, 0);
  const [right, down] = [beyond(x, width), beyond(y, height)];
  if (!right && !down) return;
  state.view.x += right / state.view.scale;
  state.view.y -= down / state.view.scale;
  moved();
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  const other = KEYS[event.key.toLowerCase()];
  if (!arrow && !other) return;
  event.preventDefault();
  if (other) return other();
  const far = (event.shiftKey ? 60 : 12) / state.view.scale;
  if (plane) {
    goTo(state.mark[0] + far * arrow[0], state.mark[1] + far * arrow[1]);
    return follow();
  }
  // From row to row, as the map has nothing between them.
  let [best, least] = [-1, Infinity];
  for (let n = 0; n < count; n++) {
    const [x, y] = [coordinates[2 * n] - state.mark[0], coordinates[2 * n + 1] - state.mark[1]];
    const ahead = x * arrow[0] + y * arrow[1];
    const aside = Math.abs(x * arrow[1]) + Math.abs(y * arrow[0]);
    if (ahead > 1e-9 && aside <= ahead && ahead + aside < least) [best, least] = [n, ahead + aside];
  }
  if (best >= 0) settle(codeOf(best)), (state.mark = [...coordinates.subarray(2 * best, 2 * best + 2)]), draw(), follow();
}

// -- words and start -----------------------------------------------------------------------------

// To those who hear the page: what has just been done, where nothing else says so.
function tell(words) {
  const again = at("told").textContent === words;
  at("told").textContent = again ? `${words}\u00a0` : words; // the same words would not be heard again
}

function pictureWords() {
  if (!plane) {
    at("picture-words").textContent = `Each dot is a row. The map keeps neighbours together (${held.map.words}); distances on it have no unit, and only rows can be pointed at.`;
    return;
  }
  const shown = Object.keys(DENSITIES).filter((n) => at(`show-${n}`).checked);
  const words = shown.map((n) => DENSITIES[n] + (inContours[n].words ? ` (${inContours[n].words})` : ""));
  const lines = shown.length ? ` Lines enclose 50, 90 and 99 % of the mass of ${words.join("; ")}, all other units integrated out.` : "";
  const holes = at("show-holes").checked && drawn.holes ? ` Shaded: holes, where the prior has mass and q_agg next to none in this plane; ${(100 * drawn.holes.share).toFixed(1)} % of the prior's draws fall below q_agg's 1 % quantile at held-out codes.` : "";
  at("picture-words").textContent = `Each dot is the mean of a row's q(z | x).${lines}${holes}`;
}

function start() {
  const data = `${held.train.toLocaleString("en")} training and ${(count - held.train).toLocaleString("en")} held-out rows as codes of ${dim} units`;
  const advice = held.recommended ? ` Sample from: ${held.recommended}.` : "";
  at("about").textContent = `${data}. Point anywhere to see what the decoder makes of it; nothing leaves this page.${advice}`;
  at("decoder-words").textContent = decoder.words;
  const views = [["units", "two units"], ["components", "principal components"], ...(places ? [["map", "map of neighbours"]] : [])];
  at("view").replaceChildren(...views.map(([value, name]) => element("option", name, { value })));
  at("view").value = "components";
  at("colour").replaceChildren(...colours.map((c, i) => element("option", c.name, { value: i })));
  fillAxes();
  over.addEventListener("pointerdown", press);
  over.addEventListener("pointermove", move);
  over.addEventListener("pointerup", release);
  over.addEventListener("pointercancel", (event) => touches.delete(event.pointerId));
  over.addEventListener("keydown", key);
  over.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 500), ...local(event));
  }, { passive: false });
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("controls").addEventListener("change", (event) => {
    if (event.target.id === "view") fillAxes();
    if (["view", "across", "up"].includes(event.target.id)) choosePlane();
    if (event.target.id === "colour") paint();
    if (event.target.name === "mode") state.trail = null;
    drawNow();
    pictureWords();
  });
  at("sample").addEventListener("click", sampleHere);
  at("export").addEventListener("click", save);
  window.addEventListener("resize", draw);
  at("points").addEventListener("webglcontextrestored", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  paint();
  state.z = Float64Array.from(codeOf(0));
  choosePlane();
  pictureWords();
  state.last = state.z;
}

// For tests, and for those who look into the page by its console.
window.explorer = {
  state,
  decode: (z) => Array.from(decoder.decode(z).values),
  responsibilities: (z) => Array.from(qAgg.responsibilities(z)),
  logProb: (name, z) => evaluated[name].logProb(z),
  decoderOf,
  toScreen,
  drawNow,
};
start();
