// The decoder: its steps on one code, and the mean of the likelihood that they parametrise.
import { unpack } from "./arrays.js";

const sigmoid = (v) => 1 / (1 + Math.exp(-v));
const softplus = (v) => (v > 30 ? v : Math.log1p(Math.exp(v)));
const ENTRYWISE = {
  relu: () => (v) => Math.max(v, 0),
  silu: () => (v) => v * sigmoid(v),
  tanh: () => Math.tanh,
  sigmoid: () => sigmoid,
  softplus: () => softplus,
  leaky_relu: (step) => (v) => (v >= 0 ? v : step.slope * v),
  elu: (step) => (v) => (v >= 0 ? v : step.alpha * Math.expm1(v)),
};

function ready(steps) {
  return steps.map((step) => {
    if (step.op === "sum") return { ...step, parts: step.parts.map(ready) };
    if (!step.weight) return step;
    const weight = unpack(step.weight);
    return { ...step, weight, size: step.weight.shape, bias: step.bias && unpack(step.bias) };
  });
}

function linear(step, x) {
  const [outputs, inputs] = step.size;
  const y = new Float64Array(outputs);
  for (let o = 0; o < outputs; o++) {
    let total = step.bias ? step.bias[o] : 0;
    for (let i = 0; i < inputs; i++) total += step.weight[o * inputs + i] * x[i];
    y[o] = total;
  }
  return y;
}

// One loop for both directions: a convolution gathers where a transposed one scatters.
function convolution(step, x, [, height, width], grows) {
  const [first, second, kh, kw] = step.size;
  const [outputs, inputs] = grows ? [second, first] : [first, second];
  const [sh, sw] = step.stride;
  const [ph, pw] = step.padding;
  const h = grows ? (height - 1) * sh - 2 * ph + kh + step.extra[0] : Math.floor((height + 2 * ph - kh) / sh) + 1;
  const w = grows ? (width - 1) * sw - 2 * pw + kw + step.extra[1] : Math.floor((width + 2 * pw - kw) / sw) + 1;
  const y = new Float64Array(outputs * h * w);
  const [smallH, smallW, largeH, largeW] = grows ? [height, width, h, w] : [h, w, height, width];
  for (let o = 0; o < outputs; o++) {
    if (step.bias) y.fill(step.bias[o], o * h * w, (o + 1) * h * w);
    for (let i = 0; i < inputs; i++)
      for (let r = 0; r < kh; r++)
        for (let c = 0; c < kw; c++) {
          const place = grows ? (i * outputs + o) * kh * kw : (o * inputs + i) * kh * kw;
          const value = step.weight[place + r * kw + c];
          for (let a = 0; a < smallH; a++) {
            const la = a * sh - ph + r;
            if (la < 0 || la >= largeH) continue;
            for (let b = 0; b < smallW; b++) {
              const lb = b * sw - pw + c;
              if (lb < 0 || lb >= largeW) continue;
              const small = a * smallW + b;
              const large = la * largeW + lb;
              if (grows) y[o * h * w + large] += value * x[i * height * width + small];
              else y[o * h * w + small] += value * x[i * height * width + large];
            }
          }
        }
  }
  return [y, [outputs, h, w]];
}

function run(steps, z) {
  let x = Float64Array.from(z);
  let shape = [x.length];
  for (const step of steps) {
    if (step.op === "linear") x = linear(step, x);
    else if (step.op === "reshape") shape = step.shape;
    else if (step.op === "conv" || step.op === "grow")
      [x, shape] = convolution(step, x, shape, step.op === "grow");
    else if (step.op === "glu") {
      const half = x.length / 2;
      x = x.slice(0, half).map((v, i) => v * sigmoid(x[half + i]));
    } else if (step.op === "interleave") {
      const pixels = shape[1] * shape[2];
      const mixed = new Float64Array(x.length);
      for (let i = 0; i < x.length; i++) {
        const channel = Math.floor(i / pixels);
        const depth = Math.floor(channel / step.outputs);
        mixed[(depth * pixels + (i % pixels)) * step.outputs + (channel % step.outputs)] = x[i];
      }
      x = mixed;
    } else if (step.op === "sum") {
      const parts = step.parts.map((part) => run(part, x));
      x = parts[0].map((v, i) => v + parts[1][i]);
    } else x = x.map(ENTRYWISE[step.op](step));
  }
  return x;
}

function softmax(values) {
  const most = Math.max(...values);
  const weights = Array.from(values, (v) => Math.exp(v - most));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / total);
}

function likeliest(values) {
  const shares = softmax(values);
  const place = shares.indexOf(Math.max(...shares));
  return [place, shares[place]];
}

// Of each entry its mean, or its likeliest category and the probability of that.
const HEADS = {
  bernoulli: (head, y) => ({ values: y.map(sigmoid) }),
  normal: (head, y) => ({ values: y.map((v, i) => head.location[i] + head.scale[i] * v) }),
  negative_binomial: (head, y) => ({ values: softmax(y).map((share) => share * head.total) }),
  logistic(head, y) {
    const values = new Float64Array(y.length / 2);
    for (let i = 0; i < values.length; i++) {
      const loc = head.levels * sigmoid(y[2 * i]) - 0.5;
      const scale = head.levels * Math.exp(head.floor + softplus(y[2 * i + 1] - head.floor));
      for (let k = 0; k < head.levels - 1; k++) values[i] += sigmoid((loc - k - 0.5) / scale);
    }
    return { values };
  },
  categorical(head, y) {
    const count = y.length / head.entries;
    const found = Array.from({ length: head.entries }, (_, i) => likeliest(y.slice(i * count, (i + 1) * count)));
    return { values: found.map((f) => f[0]), shares: found.map((f) => f[1]) };
  },
  mixed(head, y) {
    const values = [];
    const shares = [];
    let at = 0;
    let real = 0;
    for (const count of head.categories) {
      if (count === 0) {
        values.push(head.location[real] + head.scale[real] * y[at]);
        shares.push(null);
        real += 1;
      } else if (count === 1) {
        values.push(sigmoid(y[at]));
        shares.push(null);
      } else {
        const [place, share] = likeliest(y.slice(at, at + count));
        values.push(place);
        shares.push(share);
      }
      at += Math.max(1, count);
    }
    return { values, shares };
  },
};

// Returns a function from a code to what it decodes to, and how that was found, in words.
export function decoderOf(held, dim) {
  if (held.steps) {
    const steps = ready(held.steps);
    const total = held.head.total;
    const words = total ? `given the training rows' mean total of ${total.toPrecision(4)}` : "";
    return { decode: (z) => HEADS[held.head.kind](held.head, run(steps, z)), words };
  }
  const codes = unpack(held.codes);
  const decoded = unpack(held.decoded);
  const count = codes.length / dim;
  const width = decoded.length / count;
  const decode = (z) => {
    let best = 0;
    let least = Infinity;
    for (let n = 0; n < count; n++) {
      let distance = 0;
      for (let d = 0; d < dim; d++) distance += (z[d] - codes[n * dim + d]) ** 2;
      if (distance < least) [best, least] = [n, distance];
    }
    return { values: decoded.slice(best * width, (best + 1) * width) };
  };
  return { decode, words: `this page can't run the decoder: it shows the nearest of ${count} codes that were decoded before` };
}
