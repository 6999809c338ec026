// A panorama to look around in: photo, labels and errors, seen in perspective (WebGL 2) or flat (a plain canvas).
//
// Each <div class="viewer" data-group="n"> becomes a viewer of the n-th entry of the page's data, each
// <div class="panels" data-group="n"> the flat pictures of all its panoramas; see viewer.py for the data. Directions are
// those of trans4pass.sphere: x right, y forward, z up; yaw turns to the right, pitch up; angles are in degrees.
"use strict";

(() => {
  const RADIANS = Math.PI / 180;
  const NO_LABEL = 255;
  const WRONG = [230, 40, 50];
  const DIMMED = 0.35; // of the photo's brightness, where a prediction is right
  const [NARROW, WIDE] = [15, 120]; // horizontal field of view

  const VERTEX = `#version 300 es
    in vec2 corner;
    void main() { gl_Position = vec4(corner, 0., 1.); }`;

  const FRAGMENT = `#version 300 es
    precision highp float;
    uniform vec2 size;            // of the canvas, in pixels
    uniform float focal;          // in pixels
    uniform mat3 turn;            // the view's directions to the panorama's
    uniform vec3 span;            // latitudes of the upper and lower border, and the width; radians
    uniform int mode;             // 0 photo, 1 classes, 2 errors
    uniform float opacity;
    uniform vec4 wrong;           // colour, and the brightness of what is right
    uniform sampler2D photo, classes, truth, palette;
    out vec4 colour;

    void main() {
      vec3 ray = turn * vec3((gl_FragCoord.xy - size / 2.) / focal, 1.).xzy;
      float latitude = atan(ray.z, length(ray.xy));
      vec2 at = vec2(atan(ray.x, ray.y) / span.z + .5, (span.x - latitude) / (span.x - span.y));
      if (at != clamp(at, 0., 1.)) { colour = vec4(.13, .14, .16, 1.); return; }
      vec3 seen = texture(photo, at).rgb;
      int label = int(texture(classes, at).r * 255. + .5), right = int(texture(truth, at).r * 255. + .5);
      if (mode == 1) {
        vec4 own = texelFetch(palette, ivec2(label, 0), 0);
        seen = mix(seen, own.rgb, own.a * opacity);
      } else if (mode == 2) {
        bool missed = right != ${NO_LABEL} && label != right && texelFetch(palette, ivec2(right, 0), 0).a > 0.;
        seen = mix(seen, missed ? wrong.rgb : vec3(dot(seen, vec3(.3, .59, .11)) * wrong.a), opacity);
      }
      colour = vec4(seen, 1.);
    }`;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  const decoded = new Map(); // data URI -> promise of its pixels: viewer and panels share them

  const pixels = (uri) => {
    if (!decoded.has(uri)) {
      decoded.set(uri, (async () => {
        const image = new Image();
        image.src = uri;
        await image.decode();
        const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
        const pen = canvas.getContext("2d", { willReadFrequently: true });
        pen.drawImage(image, 0, 0);
        return pen.getImageData(0, 0, canvas.width, canvas.height);
      })());
    }
    return decoded.get(uri);
  };

  const first = ({ data, width, height }) => {
    const ids = new Uint8Array(width * height); // of a grey picture
    for (let at = 0; at < ids.length; at++) ids[at] = data[4 * at];
    return { ids, width, height };
  };

  const load = async (panorama) => ({
    photo: await pixels(panorama.photo),
    maps: await Promise.all(panorama.maps.map(async (map) => ({ name: map.name, ...first(await pixels(map.labels)) }))),
  });

  // What can be shown of a panorama: its photo, its label maps, and where these differ from the truth.
  const layersOf = (panorama) => {
    const truth = panorama.maps.findIndex((map) => map.truth);
    const maps = panorama.maps.map((map, index) => ({ title: map.name, mode: 1, map: index }));
    const errors = truth < 0 ? [] : maps.filter((layer) => layer.map !== truth).map((layer) => (
      { title: maps.length > 2 ? `errors: ${layer.title}` : "errors", mode: 2, map: layer.map }));
    const shown = maps.findLast((layer) => layer.map !== truth) ?? { title: "photo" };
    return { truth, shown: shown.title, layers: [{ title: "photo", mode: 0, map: 0 }, ...maps, ...errors] };
  };

  // The photo with a layer on it, as a canvas of the photo's size: the shader's rule for each pixel.
  const composed = (content, layer, truth, palette, opacity) => {
    const { width, height, data } = content.photo;
    const result = new ImageData(new Uint8ClampedArray(data), width, height);
    const map = content.maps[layer.map];
    const right = content.maps[truth];
    for (let at = 0; layer.mode && at < width * height; at++) {
      const label = map.ids[at];
      let [own, share] = [palette.subarray(4 * label, 4 * label + 3), (opacity * palette[4 * label + 3]) / 255];
      if (layer.mode === 2) {
        const missed = right.ids[at] !== NO_LABEL && label !== right.ids[at] && palette[4 * right.ids[at] + 3];
        const grey = DIMMED * (0.3 * data[4 * at] + 0.59 * data[4 * at + 1] + 0.11 * data[4 * at + 2]);
        [own, share] = [missed ? WRONG : [grey, grey, grey], opacity];
      }
      for (let c = 0; c < 3; c++) result.data[4 * at + c] += share * (own[c] - data[4 * at + c]);
    }
    const canvas = make("canvas", { width, height });
    canvas.getContext("2d").putImageData(result, 0, 0);
    return canvas;
  };

  const paletteOf = (classes, hidden) => {
    const palette = new Uint8Array(4 * 256);
    for (let id = 0; id < 256; id++) palette[4 * id + 3] = hidden.has(id) ? 0 : 255;
    classes.forEach(({ colour }, id) => palette.set(colour, 4 * id));
    return palette;
  };

  // The columns of the view's axes (right, forward, up) in the panorama, as a flat array for WebGL.
  const rotation = (yaw, pitch) => {
    const [sy, cy, sp, cp] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
    return [cy, -sy, 0, sy * cp, cy * cp, sp, -sy * sp, -cy * sp, cp];
  };

  class Renderer {
    constructor(canvas) {
      const gl = canvas.getContext("webgl2", { antialias: false });
      if (!gl) throw new Error("no WebGL 2");
      this.gl = gl;
      const program = gl.createProgram();
      for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
        const shader = gl.createShader(kind);
        gl.shaderSource(shader, source);
        gl.compileShader(shader);
        gl.attachShader(program, shader);
      }
      gl.linkProgram(program);
      if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
      gl.useProgram(program);
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 3, -1, -1, 3]), gl.STATIC_DRAW);
      const corner = gl.getAttribLocation(program, "corner");
      gl.enableVertexAttribArray(corner);
      gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0);
      gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
      this.at = (name) => gl.getUniformLocation(program, name);
      ["photo", "classes", "truth", "palette"].forEach((name, unit) => gl.uniform1i(this.at(name), unit));
      this.textures = new Map(); // of the panorama that is shown, by what they hold
    }

    // Bind a picture {data, width, height} to a unit; `smooth` ones have four channels, labels one.
    bind(unit, { data, width, height }, smooth, closed) {
      const gl = this.gl;
      gl.activeTexture(gl.TEXTURE0 + unit);
      let texture = this.textures.get(data);
      if (texture) return gl.bindTexture(gl.TEXTURE_2D, texture);
      texture = gl.createTexture();
      this.textures.set(data, texture);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      const [inside, format] = data.length === width * height ? [gl.R8, gl.RED] : [gl.RGBA8, gl.RGBA];
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.length);
      gl.texImage2D(gl.TEXTURE_2D, 0, inside, width, height, 0, format, gl.UNSIGNED_BYTE, bytes);
      for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
        gl.texParameteri(gl.TEXTURE_2D, filter, smooth ? gl.LINEAR : gl.NEAREST);
      }
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, closed ? gl.REPEAT : gl.CLAMP_TO_EDGE);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    }

    forget() {
      for (const texture of this.textures.values()) this.gl.deleteTexture(texture);
      this.textures.clear();
    }

    draw(content, layer, truth, palette, opacity, camera, { yaw, pitch, focal }) {
      const gl = this.gl;
      const { width, height } = gl.canvas;
      const closed = camera.fov === 360;
      const label = (map) => map && { data: map.ids, width: map.width, height: map.height };
      const blank = content.maps.length ? null : { data: new Uint8Array([NO_LABEL]), width: 1, height: 1 };
      gl.viewport(0, 0, width, height);
      this.bind(0, content.photo, true, closed);
      this.bind(1, blank || label(content.maps[layer.map]), false, closed);
      this.bind(2, blank || label(content.maps[Math.max(0, truth)]), false, closed);
      this.bind(3, { data: palette, width: 256, height: 1 }, false, false);
      gl.uniform2f(this.at("size"), width, height);
      gl.uniform1f(this.at("focal"), focal);
      gl.uniformMatrix3fv(this.at("turn"), false, rotation(yaw * RADIANS, pitch * RADIANS));
      gl.uniform3f(this.at("span"), camera.top * RADIANS, camera.bottom * RADIANS, camera.fov * RADIANS);
      gl.uniform1i(this.at("mode"), layer.mode);
      gl.uniform1f(this.at("opacity"), opacity);
      gl.uniform4f(this.at("wrong"), ...WRONG.map((value) => value / 255), DIMMED);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    }
  }

  class Viewer {
    constructor(host, { classes, panoramas }) {
      Object.assign(this, { host, classes, panoramas, hidden: new Set(), opacity: 0.65, flat: false });
      this.palette = paletteOf(classes, this.hidden);
      this.layer = null; // its title: kept from one panorama to the next
      this.build();
      this.reset();
      try {
        this.renderer = new Renderer(this.canvas);
      } catch (reason) {
        this.note.textContent = "This browser has no WebGL 2: the panorama is shown flat.";
      }
      this.canvas.addEventListener("webglcontextlost", () => { this.renderer = null; this.redraw(); });
      new ResizeObserver(() => this.redraw()).observe(this.stage);
      this.ready = this.show(0);
    }

    // ---- what stands on the page ----

    build() {
      this.canvas = make("canvas");
      this.plain = make("canvas");
      this.under = make("output", { class: "under" });
      this.stage = make("div", {
        class: "stage", tabindex: 0, role: "application",
        "aria-label": "Panorama. Arrows look around, plus and minus zoom, digits choose a layer, F shows it flat",
      }, this.canvas, this.plain, this.under);
      this.choice = make("select", { "aria-label": "panorama", onchange: () => this.show(this.choice.selectedIndex) },
        ...this.panoramas.map((panorama) => make("option", {}, [panorama.name, panorama.note].filter(Boolean).join(" · "))));
      this.tabs = make("div", { class: "layers", role: "radiogroup", "aria-label": "layer" });
      this.slider = make("input", {
        type: "range", min: 0, max: 100, value: 100 * this.opacity, "aria-label": "blend of photo and layer",
        oninput: () => { this.opacity = this.slider.value / 100; this.redraw(); },
      });
      this.flatButton = make("button", { type: "button", "aria-pressed": "false", onclick: () => this.toggleFlat() }, "flat");
      this.note = make("p", { class: "hint" },
        "Drag or arrow keys to look around; wheel (once clicked), pinch or + − to zoom; 1–9 choose a layer; 0 looks ahead; F flat.");
      this.legend = make("div", { class: "legend", role: "group", "aria-label": "classes" });
      this.host.append(
        make("div", { class: "bar" }, this.choice, make("label", { class: "blend" }, "photo ", this.slider, " layer"), this.flatButton),
        this.tabs, this.stage, this.note, this.legend);
      this.buildLegend();
      this.listen();
    }

    buildLegend() {
      const entries = [...this.classes.map(({ name, colour }, id) => [id, name, colour]), [NO_LABEL, "no label", [0, 0, 0]]];
      this.chips = new Map();
      for (const [id, name, colour] of entries) {
        const chip = make("button", { type: "button", "aria-pressed": "true", onclick: () => this.toggle(id) },
          make("i", { style: `background:rgb(${colour})` }), name);
        this.chips.set(id, chip);
      }
      const all = make("button", { type: "button", class: "quiet", onclick: () => this.hideAll(false) }, "all");
      const none = make("button", { type: "button", class: "quiet", onclick: () => this.hideAll(true) }, "none");
      this.legend.append(...this.chips.values(), all, none);
    }

    buildTabs() {
      this.tabs.replaceChildren(...this.layers.map((layer) => make("button", {
        type: "button", role: "radio", "aria-checked": layer.title === this.layer, onclick: () => this.choose(layer.title),
      }, layer.title)));
    }

    // ---- what a person does ----

    listen() {
      const stage = this.stage;
      const fingers = new Map();
      const spread = () => {
        const [a, b] = [...fingers.values()];
        return Math.hypot(a.x - b.x, a.y - b.y);
      };
      stage.addEventListener("pointerdown", (event) => {
        if (event.pointerType === "mouse") event.preventDefault(); // no selection of text
        stage.focus({ preventScroll: true });
        stage.setPointerCapture(event.pointerId);
        fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      });
      stage.addEventListener("pointermove", (event) => {
        this.point(event);
        const before = fingers.get(event.pointerId);
        if (!before) return;
        const was = fingers.size === 2 ? spread() : 0;
        fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
        if (was) return this.zoom(was / Math.max(1, spread()));
        const degrees = this.degreesPerPixel();
        this.look(this.yaw - (event.clientX - before.x) * degrees, this.pitch + (event.clientY - before.y) * degrees);
      });
      for (const name of ["pointerup", "pointercancel"]) {
        stage.addEventListener(name, (event) => fingers.delete(event.pointerId));
      }
      stage.addEventListener("pointerleave", () => { this.under.textContent = ""; });
      stage.addEventListener("wheel", (event) => {
        if (document.activeElement !== stage && !event.ctrlKey) return; // the page scrolls
        event.preventDefault();
        this.zoom(Math.exp(clamp(event.deltaY, -200, 200) / 500));
      }, { passive: false });
      stage.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const step = this.fov / 12;
        const acts = {
          ArrowLeft: () => this.look(this.yaw - step, this.pitch),
          ArrowRight: () => this.look(this.yaw + step, this.pitch),
          ArrowUp: () => this.look(this.yaw, this.pitch + step),
          ArrowDown: () => this.look(this.yaw, this.pitch - step),
          "+": () => this.zoom(0.9), "=": () => this.zoom(0.9), "-": () => this.zoom(1 / 0.9),
          0: () => this.reset(), f: () => this.toggleFlat(),
        };
        const layer = /^[1-9]$/.test(event.key) && this.layers[event.key - 1];
        const act = layer ? () => this.choose(layer.title) : acts[event.key] || acts[event.key.toLowerCase()];
        if (!act) return;
        event.preventDefault();
        act();
      });
    }

    async show(index) {
      const panorama = this.panoramas[index];
      this.choice.selectedIndex = index;
      const content = await load(panorama);
      if (this.choice.selectedIndex !== index) return; // another one was chosen meanwhile
      this.renderer?.forget();
      const { truth, shown, layers } = layersOf(panorama);
      Object.assign(this, { content, camera: panorama.camera, truth, layers });
      if (!layers.some((layer) => layer.title === this.layer)) this.layer = shown;
      this.flatButton.hidden = !this.camera;
      this.buildTabs();
      this.look(this.yaw, this.pitch);
    }

    choose(title) {
      this.layer = title;
      this.buildTabs();
      this.redraw();
    }

    toggle(id) {
      if (!this.hidden.delete(id)) this.hidden.add(id);
      this.chips.get(id).setAttribute("aria-pressed", !this.hidden.has(id));
      this.palette = paletteOf(this.classes, this.hidden);
      this.redraw();
    }

    hideAll(hide) {
      for (const id of this.chips.keys()) if (this.hidden.has(id) !== hide) this.toggle(id);
    }

    toggleFlat() {
      this.flat = !this.flat;
      this.flatButton.setAttribute("aria-pressed", this.flat);
      this.redraw();
    }

    look(yaw, pitch, fov = this.fov) {
      const { top, bottom } = this.camera || { top: 0, bottom: 0 };
      this.yaw = ((((yaw + 180) % 360) + 360) % 360) - 180;
      this.pitch = clamp(pitch, bottom, top);
      this.fov = clamp(fov, NARROW, WIDE);
      this.redraw();
    }

    zoom(factor) {
      this.look(this.yaw, this.pitch, this.fov * factor);
    }

    reset() {
      Object.assign(this, { yaw: 0, pitch: 0, fov: 80 });
      this.redraw();
    }

    // ---- pictures ----

    get isFlat() {
      return this.flat || !this.renderer || !this.camera;
    }

    degreesPerPixel() {
      return (this.isFlat ? this.camera?.fov || 0 : this.fov) / this.stage.clientWidth;
    }

    redraw() {
      this.pending ||= requestAnimationFrame(() => this.draw());
    }

    draw() {
      this.pending = null;
      if (!this.content) return;
      const flat = this.isFlat;
      this.canvas.hidden = flat;
      this.plain.hidden = !flat;
      const layer = this.layers.find(({ title }) => title === this.layer);
      if (flat) return this.drawFlat(composed(this.content, layer, this.truth, this.palette, this.opacity));
      const scale = window.devicePixelRatio || 1;
      this.canvas.width = Math.round(this.canvas.clientWidth * scale);
      this.canvas.height = Math.round(this.canvas.clientHeight * scale);
      this.renderer.draw(this.content, layer, this.truth, this.palette, this.opacity, this.camera, {
        yaw: this.yaw, pitch: this.pitch, focal: this.canvas.width / 2 / Math.tan((this.fov * RADIANS) / 2),
      });
    }

    drawFlat(picture) {
      Object.assign(this.plain, { width: picture.width, height: picture.height });
      const pen = this.plain.getContext("2d");
      const shift = this.shift();
      pen.drawImage(picture, -shift, 0);
      if (shift) pen.drawImage(picture, picture.width - shift, 0);
    }

    // Columns by which a closed panorama is rolled, so that the flat picture's middle is where one looks.
    shift() {
      const width = this.content.photo.width;
      return this.camera?.fov === 360 ? Math.round(((this.yaw + 360) % 360) / 360 * width) % width : 0;
    }

    // Where in the picture a point of the stage lies, as shares of its width and height; null outside of it.
    locate(x, y) {
      const { clientWidth: width, clientHeight: height } = this.isFlat ? this.plain : this.canvas;
      if (this.isFlat) return [(x / width + this.shift() / this.content.photo.width) % 1, y / height];
      const focal = width / 2 / Math.tan((this.fov * RADIANS) / 2);
      const view = [(x - width / 2) / focal, 1, (height / 2 - y) / focal];
      const turn = rotation(this.yaw * RADIANS, this.pitch * RADIANS);
      const [right, ahead, up] = [0, 1, 2].map((row) => view.reduce((sum, part, column) => sum + part * turn[3 * column + row], 0));
      const { top, bottom, fov } = this.camera;
      const latitude = Math.atan2(up, Math.hypot(right, ahead)) / RADIANS;
      const at = [Math.atan2(right, ahead) / RADIANS / fov + 0.5, (top - latitude) / (top - bottom)];
      return at.every((share) => share >= 0 && share < 1) ? at : null;
    }

    // Say what lies under the pointer.
    point(event) {
      if (!this.content) return;
      const box = this.stage.getBoundingClientRect();
      const at = this.locate(event.clientX - box.left - this.stage.clientLeft, event.clientY - box.top - this.stage.clientTop);
      this.under.textContent = at && at[1] >= 0 && at[1] < 1 ? this.describe(...at) : "";
    }

    describe(across, down) {
      const maps = this.content.maps.map(({ name, ids, width, height }) => {
        const id = ids[Math.floor(down * height) * width + Math.floor(across * width)];
        return `${name}: ${this.classes[id]?.name ?? "no label"}`;
      });
      if (!this.camera) return maps.join(", ");
      const { top, bottom, fov } = this.camera;
      const [yaw, latitude] = [(across - 0.5) * fov, top - down * (top - bottom)];
      return `${[yaw, latitude].map((degrees) => `${Math.round(degrees)}°`).join(" ")}  ${maps.join(", ")}`;
    }
  }

  // The flat pictures of all panoramas of a group, a row each; a click opens one in the viewer.
  const panels = async (host, { classes, panoramas }, viewer) => {
    const palette = paletteOf(classes, new Set());
    for (const [index, panorama] of panoramas.entries()) {
      const content = await load(panorama);
      const { truth, layers } = layersOf(panorama);
      const row = make("div", { class: "row" });
      for (const layer of layers) {
        const open = () => {
          viewer.layer = layer.title;
          viewer.show(index);
          viewer.host.scrollIntoView({ block: "start" });
        };
        const picture = composed(content, layer, truth, palette, layer.mode === 2 ? 0.85 : 1);
        const button = make("button", { type: "button", title: `look around in ${panorama.name}`, onclick: open }, picture);
        row.append(make("figure", {}, button, make("figcaption", {}, layer.title)));
      }
      host.append(make("h4", {}, panorama.name, make("small", {}, panorama.note)), row);
    }
  };

  const groups = JSON.parse(document.getElementById("panoramas").textContent);
  for (const host of document.querySelectorAll(".viewer")) host.viewer = new Viewer(host, groups[host.dataset.group]);
  for (const host of document.querySelectorAll(".panels")) {
    const { viewer } = document.querySelector(`.viewer[data-group="${host.dataset.group}"]`);
    host.ready = viewer.ready.then(() => panels(host, groups[host.dataset.group], viewer));
  }
})();
