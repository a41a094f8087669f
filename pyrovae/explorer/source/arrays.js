// Numbers as Python packed them: as they are, or as steps of a range, in base64.

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

export function unpack(packed) {
  const bytes = bytesOf(packed.data);
  if (packed.kind === "f4") return new Float32Array(bytes.buffer);
  if (packed.kind === "i4") return new Int32Array(bytes.buffer);
  const size = Number(packed.kind[1]);
  const missing = 2 ** (8 * size) - 1;
  const count = bytes.length / size;
  const columns = packed.low.length;
  const values = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    let whole = 0;
    for (let b = size - 1; b >= 0; b--) whole = whole * 256 + bytes[i * size + b];
    const c = i % columns;
    values[i] = whole === missing ? NaN : packed.low[c] + whole * packed.step[c];
  }
  return values;
}
