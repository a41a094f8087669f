// Densities over codes, in all units and in a plane.
import { unpack } from "./arrays.js";

const LOG_2PI = Math.log(2 * Math.PI);

export function logSumExp(values) {
  let most = -Infinity;
  for (const v of values) if (v > most) most = v;
  if (most === -Infinity) return most;
  let total = 0;
  for (const v of values) total += Math.exp(v - most);
  return most + Math.log(total);
}

export function quantile(values, share) {
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.floor(share * sorted.length)))];
}

// A mixture of normals with a root of each covariance: scales, or lower triangles.
export class Normals {
  constructor({ logWeight, loc, root, full, words }) {
    Object.assign(this, { logWeight, loc, root, full, words });
    this.size = logWeight.length;
    this.dim = loc.length / this.size;
    this.constant = Float64Array.from(logWeight);
    for (let n = 0; n < this.size; n++) {
      for (let d = 0; d < this.dim; d++)
        this.constant[n] -= Math.log(full ? root[(n * this.dim + d) * this.dim + d] : root[n * this.dim + d]);
      this.constant[n] -= 0.5 * this.dim * LOG_2PI;
    }
  }

  static from(held) {
    const full = held.root.shape.length === 3;
    const [logWeight, loc, root] = [held.log_weight, held.loc, held.root].map(unpack);
    return new Normals({ logWeight, loc, root, full, words: held.words });
  }

  // log w_n N(z; n) of every component
  terms(z) {
    const { dim, size, loc, root, full } = this;
    const found = Float64Array.from(this.constant);
    const y = new Float64Array(dim);
    for (let n = 0; n < size; n++) {
      let square = 0;
      for (let d = 0; d < dim; d++) {
        let v = z[d] - loc[n * dim + d];
        if (full) {
          const row = (n * dim + d) * dim;
          for (let e = 0; e < d; e++) v -= root[row + e] * y[e];
          y[d] = v / root[row + d];
        } else y[d] = v / root[n * dim + d];
        square += y[d] * y[d];
      }
      found[n] -= square / 2;
    }
    return found;
  }

  logProb(z) {
    return logSumExp(this.terms(z));
  }

  responsibilities(z) {
    const terms = this.terms(z);
    const total = logSumExp(terms);
    return terms.map((t) => Math.exp(t - total));
  }

  // Root^T v, of which the square is the variance along v.
  along(n, v) {
    const { dim, root, full } = this;
    const found = new Float64Array(dim);
    for (let d = 0; d < dim; d++) {
      if (full) for (let e = d; e < dim; e++) found[d] += root[(n * dim + e) * dim + d] * v[e];
      else found[d] = root[n * dim + d] * v[d];
    }
    return found;
  }

  // The marginal in a plane: means and inverse covariances of two coordinates.
  inPlane(plane) {
    const { size, dim, loc } = this;
    const flat = new Float64Array(size * 6);
    const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);
    for (let n = 0; n < size; n++) {
      const centre = plane.place(loc.subarray(n * dim, (n + 1) * dim));
      const a = this.along(n, plane.x);
      const b = this.along(n, plane.y);
      const [xx, xy, yy] = [dot(a, a), dot(a, b), dot(b, b)];
      const det = Math.max(xx * yy - xy * xy, 1e-300);
      const constant = this.logWeight[n] - LOG_2PI - 0.5 * Math.log(det);
      flat.set([centre[0], centre[1], yy / det, -xy / det, xx / det, constant], 6 * n);
    }
    const terms = (u, v) => {
      const found = new Float64Array(size);
      for (let n = 0; n < size; n++) {
        const i = 6 * n;
        const [dx, dy] = [u - flat[i], v - flat[i + 1]];
        found[n] = flat[i + 5] - 0.5 * (dx * dx * flat[i + 2] + 2 * dx * dy * flat[i + 3] + dy * dy * flat[i + 4]);
      }
      return found;
    };
    return { flat, terms, logProb: (u, v) => logSumExp(terms(u, v)) };
  }

  // E[z | the two coordinates]: the rest of a code as it usually is there.
  lift(plane, marginal, u, v) {
    const { size, dim, loc, root } = this;
    const terms = marginal.terms(u, v);
    const total = logSumExp(terms);
    const z = new Float64Array(dim);
    for (let n = 0; n < size; n++) {
      const weight = Math.exp(terms[n] - total);
      if (weight < 1e-9) continue;
      const i = 6 * n;
      const [dx, dy] = [u - marginal.flat[i], v - marginal.flat[i + 1]];
      const p = marginal.flat[i + 2] * dx + marginal.flat[i + 3] * dy;
      const q = marginal.flat[i + 3] * dx + marginal.flat[i + 4] * dy;
      for (let d = 0; d < dim; d++) {
        const variance = root[n * dim + d] ** 2; // q_agg has independent units
        z[d] += weight * (loc[n * dim + d] + variance * (plane.x[d] * p + plane.y[d] * q));
      }
    }
    return z;
  }
}
