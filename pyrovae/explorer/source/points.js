// Points on a canvas by WebGL, or by the plain canvas where there is none.

const VERTEX = `
attribute vec2 place; attribute vec4 colour; varying vec4 shade;
uniform vec2 centre; uniform vec2 zoom; uniform float size;
void main() { gl_Position = vec4((place - centre) * zoom, 0.0, 1.0); gl_PointSize = size; shade = colour; }`;
const FRAGMENT = `
precision mediump float; varying vec4 shade;
void main() {
  float r = length(gl_PointCoord - 0.5);
  float a = shade.a * (1.0 - smoothstep(0.38, 0.5, r));
  gl_FragColor = vec4(shade.rgb * a, a);
}`;

export class Points {
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl", { antialias: false, premultipliedAlpha: true });
    if (!this.gl) this.plain = canvas.getContext("2d");
    else this.prepare();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.prepare();
      this.setPlaces(this.places);
      this.setColours(this.colours);
    });
  }

  prepare() {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    this.uniforms = Object.fromEntries(["centre", "zoom", "size"].map((n) => [n, gl.getUniformLocation(program, n)]));
    this.buffers = {};
    for (const [name, count, kind, whole] of [["place", 2, gl.FLOAT, false], ["colour", 4, gl.UNSIGNED_BYTE, true]]) {
      this.buffers[name] = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
      const at = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, count, kind, whole, 0, 0);
    }
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  fill(name, values) {
    if (!this.gl) return;
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers[name]);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, values, this.gl.STATIC_DRAW);
  }

  setPlaces(places) {
    this.places = places;
    this.shown = null;
    this.fill("place", places);
  }

  setColours(colours) {
    this.colours = colours;
    this.shown = null;
    this.fill("colour", colours);
  }

  // A canvas keeps what it shows, but can be copied only right after it was drawn: `anew`.
  draw(view, ratio, anew = false) {
    const { canvas, gl, places, colours } = this;
    const asked = [view.x, view.y, view.scale, ratio, canvas.width, canvas.height].join();
    if (asked === this.shown && !anew) return;
    this.shown = asked;
    const count = places.length / 2;
    const size = (count > 20000 ? 3 : count > 3000 ? 4.5 : 6) * ratio;
    if (gl) {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.uniform2f(this.uniforms.centre, view.x, view.y);
      gl.uniform2f(this.uniforms.zoom, (2 * view.scale * ratio) / canvas.width, (2 * view.scale * ratio) / canvas.height);
      gl.uniform1f(this.uniforms.size, size);
      gl.drawArrays(gl.POINTS, 0, count);
      return;
    }
    this.plain.clearRect(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < count; i++) {
      const [r, g, b, a] = colours.subarray(4 * i, 4 * i + 4);
      this.plain.fillStyle = `rgba(${r},${g},${b},${a / 255})`;
      const x = canvas.width / 2 + (places[2 * i] - view.x) * view.scale * ratio;
      const y = canvas.height / 2 - (places[2 * i + 1] - view.y) * view.scale * ratio;
      this.plain.fillRect(x - size / 3, y - size / 3, size / 1.5, size / 1.5);
    }
  }
}
