// The surface of a report: point at a bin, and see its values, its basin and a structure. Reads the JSON of
// #surface-data; writes text only by textContent. A click or Enter holds a bin, Escape lets it go, arrow keys move.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("surface-data").textContent);
  const root = document.getElementById("surface");
  const map = document.getElementById("surface-map");
  const readout = document.getElementById("surface-values");
  const stage = document.getElementById("surface-structure");
  const note = document.getElementById("surface-note");
  const flat = data.shape.length === 1;
  const nx = data.shape[0], ny = flat ? 1 : data.shape[1];
  const W = 460, H = flat ? 300 : 430, L = 56, R = 74, T = 10, B = 46;
  const NS = "http://www.w3.org/2000/svg";
  let shown = -1, held = false, quantity = "value", viewer = null, drawn = -1, seen = false;
  root.hidden = false;

  function element(name, attributes, text) {
    const made = document.createElementNS(NS, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    map.appendChild(made);
    return made;
  }
  function x(t) { return L + (W - L - R) * t; }
  function y(t) { return H - B - (H - T - B) * t; }
  function place(k, value) {
    const edges = data.edges[k];
    return (value - edges[0]) / (edges[edges.length - 1] - edges[0]);
  }
  function colour(t) {
    const table = quantity === "value" ? data.viridis : data.cividis;
    return table[Math.max(0, Math.min(table.length - 1, Math.floor(t * table.length)))];
  }
  function limits() {
    const known = data[quantity].filter(v => v !== null).sort((a, b) => a - b);
    // a few bins at the rim must not hide the others
    const top = quantity === "value" ? known[known.length - 1] : known[Math.floor(0.98 * (known.length - 1))];
    return known.length ? [known[0], top > known[0] ? top : known[0] + 1] : [0, 1];
  }
  function ticks(low, high, count) {
    const raw = (high - low) / count, power = Math.pow(10, Math.floor(Math.log10(raw)));
    const step = power * [1, 2, 5, 10].find(f => f * power >= raw);
    const found = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + 1e-9 * step; v += step) found.push(+v.toPrecision(10));
    return found;
  }
  function axisTicks(k) {
    const edges = data.edges[k], low = edges[0], high = edges[edges.length - 1];
    return data.cvs[k].degrees && Math.abs(high - low - 360) < 1e-6 ? [-180, -90, 0, 90, 180] : ticks(low, high, 5);
  }

  function draw() {
    while (map.lastChild) map.removeChild(map.lastChild);
    const [low, high] = limits();
    for (const v of axisTicks(0)) {
      element("text", { x: x(place(0, v)), y: H - B + 16, "text-anchor": "middle" }, v);
      element("line", { x1: x(place(0, v)), x2: x(place(0, v)), y1: H - B, y2: H - B + 4, class: "axis" });
    }
    element("text", { x: x(0.5), y: H - 8, "text-anchor": "middle" }, data.cvs[0].axis);
    const upright = { "text-anchor": "middle", transform: "translate(13 " + y(0.5) + ") rotate(-90)" };
    if (flat) drawCurve(low, high, upright); else drawMap(low, high, upright);
    for (const basin of data.basins) {
      const at = basin.at.map((v, k) => place(k, v));
      const height = flat ? y(0) - 12 : y(at[1]) + 6;
      element("text", { x: x(at[0]), y: height, class: "basin", "text-anchor": "middle" }, basin.label);
    }
    element("rect", { x: L, y: T, width: W - L - R, height: H - T - B, fill: "none", class: "axis" });
    map.cursor = element("rect", { fill: "none", class: "cursor", visibility: "hidden" });
    if (shown >= 0) mark();
  }
  function drawMap(low, high, upright) {
    for (let i = 0; i < nx; i++) {
      for (let j = 0; j < ny; j++) {
        const value = data[quantity][i * ny + j];
        if (value === null) continue;
        const box = rectangle(i, j);
        element("rect", { ...box, fill: colour((value - low) / (high - low)), class: "bin" });
      }
    }
    outline();
    for (const v of axisTicks(1)) {
      element("text", { x: L - 7, y: y(place(1, v)) + 4, "text-anchor": "end" }, v);
      element("line", { x1: L - 4, x2: L, y1: y(place(1, v)), y2: y(place(1, v)), class: "axis" });
    }
    element("text", upright, data.cvs[1].axis);
    for (let k = 0; k < 64; k++) {
      element("rect", { x: W - R + 12, y: y((k + 1) / 64), width: 12, height: (H - T - B) / 64 + 0.5,
                        fill: colour((k + 0.5) / 64), class: "bin" });
    }
    for (const v of ticks(low, high, 6)) {
      element("text", { x: W - R + 28, y: y((v - low) / (high - low)) + 4 }, v);
    }
    element("text", { "text-anchor": "middle", transform: "translate(" + (W - 6) + " " + y(0.5) + ") rotate(-90)" }, label());
  }
  function drawCurve(low, high, upright) {
    const points = [];
    let pen = "M";
    for (let i = 0; i < nx; i++) {
      const value = data[quantity][i];
      if (value === null) { pen = "M"; continue; }
      points.push(pen + x((i + 0.5) / nx) + " " + y((value - low) / (high - low)));
      pen = "L";
      if (quantity === "value") {
        const e = data.error[i] / (high - low) * (H - T - B), at = y((value - low) / (high - low));
        element("line", { x1: x((i + 0.5) / nx), x2: x((i + 0.5) / nx), y1: at - e, y2: at + e, class: "error" });
      }
      element("circle", { cx: x((i + 0.5) / nx), cy: y((value - low) / (high - low)), r: 2.5, class: "point" });
    }
    element("path", { d: points.join(""), class: "curve" });
    for (const v of ticks(low, high, 5)) {
      element("text", { x: L - 7, y: y((v - low) / (high - low)) + 4, "text-anchor": "end" }, v);
    }
    element("text", upright, label());
  }
  function label() { return quantity === "value" ? "free energy (kJ/mol)" : "standard error (kJ/mol)"; }
  function outline() { // between basins
    const of = (i, j) => {
      const a = data.periodic[0] ? (i + nx) % nx : i, b = data.periodic[1] ? (j + ny) % ny : j;
      return a < 0 || b < 0 || a >= nx || b >= ny ? -1 : data.basin[a * ny + b];
    };
    const path = [];
    for (let i = 0; i < nx; i++) {
      for (let j = 0; j < ny; j++) {
        const own = of(i, j), right = of(i + 1, j), above = of(i, j + 1);
        const [x1, y0, y1, x0] = [x((i + 1) / nx), y(j / ny), y((j + 1) / ny), x(i / nx)];
        if (own >= 0 && right >= 0 && own !== right) path.push("M" + x1 + " " + y0 + "L" + x1 + " " + y1);
        if (own >= 0 && above >= 0 && own !== above) path.push("M" + x0 + " " + y1 + "L" + x1 + " " + y1);
      }
    }
    element("path", { d: path.join(""), class: "border" });
  }
  function rectangle(i, j) {
    if (flat) return { x: x(i / nx), y: T, width: (W - L - R) / nx, height: H - T - B };
    return { x: x(i / nx), y: y((j + 1) / ny), width: (W - L - R) / nx, height: (H - T - B) / ny };
  }
  function mark() {
    const box = rectangle(Math.floor(shown / ny), shown % ny);
    for (const key in box) map.cursor.setAttribute(key, box[key]);
    map.cursor.setAttribute("visibility", "visible");
    map.cursor.setAttribute("class", held ? "cursor held" : "cursor");
  }

  function number(value, digits) {
    const text = value.toFixed(digits);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
  }
  function show(bin) {
    shown = bin;
    mark();
    const index = [Math.floor(bin / ny), bin % ny];
    const where = data.cvs.map((cv, k) => {
      const edges = data.edges[k], middle = (edges[index[k]] + edges[index[k] + 1]) / 2;
      return cv.name + " " + number(middle, cv.degrees ? 0 : 3) + cv.unit;
    });
    const lines = [where.join(", ")];
    if (data.value[bin] === null) {
      lines.push("not sampled");
    } else {
      lines.push("free energy " + number(data.value[bin], 2) + " kJ/mol");
      lines.push("standard error " + number(data.error[bin], 2) + " kJ/mol");
      const basin = data.basins[data.basin[bin]];
      if (basin) lines.push("basin " + basin.label);
      else if (data.basins.length) lines.push("in no basin");
      if (data.untrusted[bin]) lines.push("windows disagree here: not to be trusted");
    }
    readout.textContent = "";
    for (const line of lines) {
      const item = document.createElement("div");
      item.textContent = line;
      readout.appendChild(item);
    }
    root.dataset.bin = bin;
    structure(bin);
  }

  // structures

  function unpack() {
    const text = atob(data.coordinates), bytes = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
    const view = new DataView(bytes.buffer), numbers = new Int16Array(bytes.length / 2);
    for (let k = 0; k < numbers.length; k++) numbers[k] = view.getInt16(2 * k, true);
    return numbers;
  }
  function begin() {
    if (!data.coordinates) return "this folder holds no structures";
    const probe = document.createElement("canvas");
    if (!(probe.getContext("webgl2") || probe.getContext("webgl"))) {
      return "This browser has no WebGL: structures cannot be shown. Everything else works.";
    }
    try {
      data.positions = unpack();
      viewer = window.$3Dmol.createViewer(stage, { backgroundColor: "white" });
    } catch (error) {
      viewer = null;
    }
    return viewer ? "" : "The viewer of structures did not start. Everything else works.";
  }
  function structure(bin) {
    const which = data.structure_bins.indexOf(bin);
    stage.dataset.bin = which < 0 ? "" : bin;
    if (!viewer) return;
    note.textContent = which >= 0 ? "the sample with the largest weight in this bin"
      : data.value[bin] === null ? "not sampled" : "no structure is kept for this bin";
    if (which === drawn) return;
    drawn = which;
    viewer.removeAllModels();
    if (which >= 0) {
      const n = data.elements.length, start = which * 3 * n;
      const atoms = data.elements.map((elem, k) => ({
        elem: elem, serial: k, index: k, bonds: [], bondOrder: [], hetflag: true,
        x: data.positions[start + 3 * k] / 100, y: data.positions[start + 3 * k + 1] / 100,
        z: data.positions[start + 3 * k + 2] / 100,
      }));
      for (const [a, b] of data.bonds) {
        atoms[a].bonds.push(b); atoms[a].bondOrder.push(1);
        atoms[b].bonds.push(a); atoms[b].bondOrder.push(1);
      }
      viewer.addModel().addAtoms(atoms);
      viewer.setStyle({}, { stick: { radius: 0.14 }, sphere: { scale: 0.24 } });
      if (!seen) viewer.zoomTo(); // later ones keep the view that the reader has chosen
      seen = true;
    }
    viewer.render();
  }

  // pointing

  function binAt(event) {
    const box = map.getBoundingClientRect();
    const u = ((event.clientX - box.left) * W / box.width - L) / (W - L - R);
    const v = (H - B - (event.clientY - box.top) * H / box.height) / (H - T - B);
    if (u < 0 || u >= 1 || v < 0 || v >= 1) return -1;
    return Math.floor(u * nx) * ny + (flat ? 0 : Math.floor(v * ny));
  }
  map.addEventListener("pointermove", event => {
    const bin = binAt(event);
    if (!held && bin >= 0 && bin !== shown) show(bin);
  });
  map.addEventListener("click", event => {
    const bin = binAt(event);
    if (bin < 0) return;
    held = !(held && bin === shown);
    show(bin);
  });
  map.addEventListener("keydown", event => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === "Enter" || event.key === " ") held = !held;
    else if (event.key === "Escape") held = false;
    else if (!step) return;
    event.preventDefault();
    let i = Math.floor(shown / ny), j = shown % ny;
    if (step) {
      i = data.periodic[0] ? (i + step[0] + nx) % nx : Math.max(0, Math.min(nx - 1, i + step[0]));
      if (!flat) j = data.periodic[1] ? (j + step[1] + ny) % ny : Math.max(0, Math.min(ny - 1, j + step[1]));
    }
    show(i * ny + j);
  });
  for (const input of root.querySelectorAll("input")) {
    input.addEventListener("change", () => { quantity = input.value; draw(); });
  }

  map.setAttribute("viewBox", "0 0 " + W + " " + H);
  draw();
  const problem = begin();
  if (problem) note.textContent = problem;
  const first = data.value.reduce((best, v, k) => v !== null && (best < 0 || v < data.value[best]) ? k : best, -1);
  show(Math.max(first, 0));
})();
