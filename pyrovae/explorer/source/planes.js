// The plane that is looked at, and what densities look like in it.
import { quantile } from "./densities.js";

const SIDE = 110; // places of a grid along each axis
const MASSES = [0.5, 0.9, 0.99];

// Two directions of unit length at right angles, and the point that has the coordinates 0, 0.
export class Plane {
  constructor(x, y, centre, names) {
    Object.assign(this, { x, y, centre, names });
  }

  place(z) {
    let [u, v] = [0, 0];
    for (let d = 0; d < z.length; d++) {
      u += this.x[d] * (z[d] - this.centre[d]);
      v += this.y[d] * (z[d] - this.centre[d]);
    }
    return [u, v];
  }

  // The code moved within the plane to other coordinates, all else as it is.
  move(z, u, v) {
    const [a, b] = this.place(z);
    return Float64Array.from(z, (value, d) => value + (u - a) * this.x[d] + (v - b) * this.y[d]);
  }
}

export class Grid {
  constructor(marginal, box) {
    this.box = box;
    this.values = new Float64Array(SIDE * SIDE);
    this.step = [(box[2] - box[0]) / (SIDE - 1), (box[3] - box[1]) / (SIDE - 1)];
    for (let j = 0; j < SIDE; j++)
      for (let i = 0; i < SIDE; i++) this.values[j * SIDE + i] = marginal.logProb(...this.at(i, j));
  }

  at(i, j) {
    return [this.box[0] + i * this.step[0], this.box[1] + j * this.step[1]];
  }

  // Lines around the smallest regions that hold 50, 90 and 99 % of the mass within the grid.
  contours() {
    const order = Float64Array.from(this.values, Math.exp).sort().reverse();
    const total = order.reduce((a, b) => a + b, 0);
    const levels = MASSES.map((mass) => {
      let sum = 0;
      return Math.log(order.find((p) => (sum += p) >= mass * total) ?? 1);
    });
    return levels.map((level) => this.line(level));
  }

  line(level) {
    const segments = [];
    const value = (i, j) => this.values[j * SIDE + i];
    for (let j = 0; j + 1 < SIDE; j++)
      for (let i = 0; i + 1 < SIDE; i++) {
        const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
        const crossed = [];
        for (let k = 0; k < 4; k++) {
          const [a, b] = [corners[k], corners[(k + 1) % 4]];
          const [p, q] = [value(...a), value(...b)];
          if (p > level === q > level) continue;
          const t = (level - p) / (q - p);
          crossed.push(this.at(a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])));
        }
        for (let k = 0; k + 1 < crossed.length; k += 2) segments.push([...crossed[k], ...crossed[k + 1]]);
      }
    return segments;
  }
}

// Where the prior has mass and q_agg next to none: below the 1 % quantile of its log density at held-out codes.
export function holesOf(inner, outer, inside, draws) {
  const floor = quantile(inside.map(([u, v]) => inner.logProb(u, v)), 0.01);
  const reach = quantile(draws.map(([u, v]) => outer.logProb(u, v)), 0.01);
  const share = draws.filter(([u, v]) => inner.logProb(u, v) < floor).length / draws.length;
  return { floor, reach, share };
}

export function shade(holes, inner, outer, colour) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  const image = context.createImageData(SIDE, SIDE);
  for (let j = 0; j < SIDE; j++)
    for (let i = 0; i < SIDE; i++) {
      const hole = inner.values[j * SIDE + i] < holes.floor && outer.values[j * SIDE + i] >= holes.reach;
      if (hole) image.data.set(colour, 4 * ((SIDE - 1 - j) * SIDE + i));
    }
  context.putImageData(image, 0, 0);
  return canvas;
}
