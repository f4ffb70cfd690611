// The story of one image, drawn in the browser from the payload of analyses/story.py: in the dashboard, as a component
// of Streamlit's, and in a page of its own. Steps and heads count from 0 here and in links; what is shown counts steps
// from 1. Texts come from files and are only ever set as text.

const STYLE = `
.story { --ink: var(--st-text-color, CanvasText); --paper: var(--st-background-color, Canvas);
  --line: color-mix(in srgb, var(--ink) 25%, var(--paper)); --soft: color-mix(in srgb, var(--ink) 7%, var(--paper));
  --strong: #d55e00; --label: 7.2em; color: var(--ink); font: 15px/1.45 var(--st-font, sans-serif); }
.story h2, .story .said, .story .small, .story .bar span { overflow-wrap: anywhere; }
.story * { box-sizing: border-box; }
.story button { font: inherit; color: inherit; background: none; border: 1px solid var(--line); border-radius: 6px;
  padding: .2em .7em; cursor: pointer; }
.story button:focus-visible, .story .film:focus-visible { outline: 3px solid #7cc4ee; outline-offset: 1px; }
.story .scene { display: grid; grid-template-columns: minmax(220px, 340px) 1fr; gap: 1.2rem; align-items: start; }
.story canvas { display: block; width: 100%; }
.story .stage canvas { aspect-ratio: 1; border-radius: 6px; }
.story .said { margin: 0 0 .6rem; padding: 0; list-style: none; }
.story .said li { margin: 0 0 .35rem; }
.story h2, .story h3 { font-size: 1.05em; margin: .8rem 0 .3rem; padding: 0; }
.story h2.name { font-size: 1.25em; margin-top: 0; }
.story .bar { display: grid; grid-template-columns: minmax(7em, 12em) 1fr 4.2em; gap: .5em; align-items: center;
  font-size: .93em; }
.story .bar i { display: block; height: .75em; background: var(--soft); position: relative; }
.story .bar i b { position: absolute; inset: 0 auto 0 0; }
.story .bar i u { position: absolute; top: -2px; bottom: -2px; width: 1px; background: var(--ink); }
.story .bar span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.story .controls { display: flex; flex-wrap: wrap; gap: .4rem; margin: .9rem 0 .5rem; align-items: center; }
.story .controls .wide { flex: 1; }
.story .film { overflow-x: auto; padding: 3px; }
.story .row { display: grid; grid-template-columns: var(--label) repeat(var(--n), minmax(0, 1fr)); gap: 3px;
  margin-bottom: 3px; min-width: calc(var(--label) + var(--n) * (var(--cell) + 3px)); }
.story .row > :first-child { font-size: .85em; line-height: 1.2; align-self: center; position: sticky; left: -3px;
  background: var(--paper); z-index: 1; padding: .2em .4em .2em 3px; }
.story .row > .cell { padding: 0; border-width: 2px; border-radius: 4px; border-color: transparent; min-width: 0;
  min-height: 1.9em; overflow: hidden; font-size: .8em; line-height: 1.2; overflow-wrap: anywhere; }
.story .row > .cell.now { border-color: var(--strong); }
.story .row > .cell.off { text-decoration: line-through; border-style: dashed; border-color: var(--ink); }
.story .row.words > .cell { align-self: start; }
.story .lines { grid-column: 2 / -1; height: 70px; width: 100%; overflow: visible; }
.story .key { font-size: .85em; display: flex; flex-wrap: wrap; gap: .3em 1.4em; margin: .5rem 0 0; }
.story .key canvas { display: inline-block; width: 90px; height: .7em; margin: 0 .4em; vertical-align: middle; }
.story kbd { border: 1px solid var(--line); border-radius: 3px; padding: 0 .35em; font-size: .9em; }
.story .small { font-size: .87em; min-height: 2.9em; margin: .4rem 0 0; }
.story .moments { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5em, 1fr)); gap: .5rem; }
.story .moment { display: flex; flex-direction: column; gap: .3em; padding: .4em; font-size: .87em; text-align: left; }
.story .moment img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px; image-rendering: auto; }
@media (max-width: 700px) { .story .scene { grid-template-columns: 1fr; } .story .stage { max-width: 340px; }
  .story .bar { grid-template-columns: 8em 1fr 4em; }
  .story { --label: 4.6em; } }
`;
const STRONG = "#d55e00";
const PACE = 700,
  SMALL = 96,
  LARGE = 480; // milliseconds a step in play, pixels of a small and the large picture
const KINDS = { float32: Float32Array, uint32: Uint32Array };
const stories = new WeakMap(); // by the element that each lives in
let wanted = null; // the step and the head of a moment that was clicked, for the story that comes
const last = {}; // where the visitor was, for the time that the tab is open

// Numbers and elements

function unpacked({ shape, type, bytes }) {
  const values = new KINDS[type](Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0)).buffer);
  const strides = shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1));
  const at = (...where) => values[where.reduce((sum, place, i) => sum + place * strides[i], 0)];
  const part = (...where) => {
    const first = where.reduce((sum, place, i) => sum + place * strides[i], 0);
    return values.subarray(first, first + strides[where.length - 1]);
  };
  return { at, part, shape, values };
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const percent = (value) => `${(100 * value).toFixed(value > 0.9995 || value < 0.0995 ? 1 : 0)} %`;
const within = (value, n) => /^\d{1,4}$/.test(value ?? "") && Number(value) < n;
const largest = (values) => values.reduce((a, b) => Math.max(a, b), 1e-12);

function mixed(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1),
    low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((value, i) => Math.round(value + (place - low) * (stops[low + 1][i] - value)));
}

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

function luminance(colour) {
  const [r, g, b] = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Pictures

function heat(values, rows, columns, highest, stops) {
  const small = element("canvas", { width: columns, height: rows });
  const context = small.getContext("2d"),
    pixels = context.createImageData(columns, rows);
  values.forEach((value, i) => pixels.data.set([...mixed(stops, value / highest), 255], 4 * i));
  context.putImageData(pixels, 0, 0);
  return small;
}

function paint(canvas, size, { picture, map, alpha = 0.66, smooth = true, path, pixels, cross }) {
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.imageSmoothingEnabled = true;
  context.drawImage(picture, 0, 0, size, size);
  if (map) {
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = smooth;
    context.drawImage(map, 0, 0, size, size);
    context.globalAlpha = 1;
  }
  if (path) {
    context.save();
    context.scale(size / pixels, size / pixels);
    context.lineWidth = (1.6 * pixels) / Math.max(size, 200);
    context.strokeStyle = "white";
    context.stroke(path);
    context.restore();
  }
  if (cross) {
    const [x, y] = cross.map((share) => share * size),
      r = size / 45;
    context.lineWidth = size / 120;
    context.strokeStyle = "cyan";
    context.beginPath();
    for (const [dx, dy] of [
      [r, r],
      [r, -r],
    ])
      (context.moveTo(x - dx, y - dy), context.lineTo(x + dx, y + dy));
    context.stroke();
  }
}

function write(context, text, x, y, { font = "14px sans-serif", most, ink }) {
  context.fillStyle = ink;
  context.font = font;
  context.fillText(text, x, y, most);
}

function wrap(context, text, x, y, width, ink) {
  // in lines of at most this width; returns where the next text may stand
  let line = "";
  context.font = "14px sans-serif";
  for (const word of text.split(" ")) {
    const longer = line ? `${line} ${word}` : word;
    if (line && context.measureText(longer).width > width) {
      write(context, line, x, y, { ink });
      line = word;
      y += 19;
    } else line = longer;
  }
  write(context, line, x, y, { ink });
  return y + 19;
}

class Story {
  constructor(parent) {
    this.host = element("section", { className: "story" });
    parent.append(element("style", { textContent: STYLE }), this.host);
    this.onKey = (event) => this.key(event);
    document.addEventListener("keydown", this.onKey);
  }

  close() {
    this.pause();
    document.removeEventListener("keydown", this.onKey);
    this.host.remove();
  }

  // What is told, and where in it the visitor is

  update({ data, setTriggerValue }) {
    this.send = setTriggerValue;
    if (this.text === JSON.stringify(data)) return this.toLink();
    this.text = JSON.stringify(data);
    this.data = data;
    for (const name of Object.keys(data)) if (data[name]?.bytes) this[name] = unpacked(data[name]);
    this.heads = data.heads && Object.fromEntries(Object.entries(data.heads).map(([name, of]) => [name, unpacked(of)]));
    [this.nSteps, this.nHeads, this.rows, this.columns] = this.attention.shape;
    this.isOff = (step, head) => data.off.some(([t, h]) => t === step && h === head);
    this.path = data.outline ? new Path2D(data.outline) : null;
    const picture = new Image();
    picture.onload = () => {
      this.picture = picture;
      this.place();
      this.build();
      this.draw();
    };
    picture.src = data.picture;
  }

  place() {
    const link = new URLSearchParams(location.search),
      from = (name) => link.get(name) ?? String(last[name] ?? "");
    const [step, head] = this.start();
    this.at ??= {
      step: within(from("step"), this.nSteps) ? Number(from("step")) : step,
      head: within(from("head"), this.nHeads) ? Number(from("head")) : head,
      film: from("film") === "heads" ? "heads" : "steps",
    };
    this.at = { ...this.at, ...wanted };
    wanted = null;
    this.at.step = Math.min(this.at.step, this.nSteps - 1);
    this.at.head = Math.min(this.at.head, this.nHeads - 1);
  }

  start() {
    // where most is lost without a head, or else the last step
    if (!this.heads) return [this.nSteps - 1, 0];
    const lost = this.heads.lost.values,
      most = lost.indexOf(largest(lost));
    return most < 0 ? [this.nSteps - 1, 0] : [Math.floor(most / this.nHeads), most % this.nHeads];
  }

  toLink() {
    Object.assign(last, this.at);
    if (!this.send) return; // a saved page has an address that is nobody's link
    const link = new URL(location.href);
    for (const name of ["step", "head", "film"]) link.searchParams.set(name, this.at[name]);
    if (link.href !== location.href) history.replaceState(history.state, "", link);
  }

  go(step, head = this.at.head) {
    this.at.step = (step + this.nSteps) % this.nSteps;
    this.at.head = (head + this.nHeads) % this.nHeads;
    this.draw();
  }

  key(event) {
    const from = event.composedPath()[0],
      typing = from.matches?.("input, textarea, select, [contenteditable], [role=slider]");
    const presses = event.key === " " && !this.host.contains(from) && from.closest?.("button, a, summary");
    if (!this.picture || typing || presses || event.ctrlKey || event.metaKey || event.altKey) return;
    const { step, head } = this.at;
    const does = {
      ArrowLeft: () => this.go(step - 1),
      ArrowRight: () => this.go(step + 1),
      ArrowUp: () => this.go(step, head - 1),
      ArrowDown: () => this.go(step, head + 1),
      " ": () => this.play(),
      n: () => this.send?.("another", Date.now()),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    event.stopPropagation();
    does();
    if (event.key.startsWith("Arrow") && this.host.contains(from)) this.grid?.[this.at.head][this.at.step].focus();
  }

  play() {
    if (this.timer) return this.pause();
    this.timer = setInterval(() => this.go(this.at.step + 1), PACE);
    this.playing.textContent = "❚❚ Pause";
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    if (this.playing) this.playing.textContent = "▶ Play";
  }

  toggle(step, head) {
    this.go(step, head);
    this.send?.("toggle", `${step}.${head}.${Date.now()}`);
  }

  // Elements, made once for a payload

  build() {
    const { data } = this,
      focused = this.host.getRootNode().activeElement?.dataset?.place;
    this.stage = element("canvas", { role: "img" });
    this.note = element("p", { className: "small" });
    this.note.setAttribute("aria-live", "polite");
    this.bars = element("div");
    const said = element(
      "ul",
      { className: "said" },
      ...data.sentences.map((text) => element("li", { textContent: text })),
    );
    const answer = data.classes ? [element("h3", {}, (this.after = element("span"))), this.bars] : [];
    const scene = element(
      "div",
      { className: "scene" },
      element("div", { className: "stage" }, this.stage, this.note),
      element("div", {}, element("h2", { className: "name", textContent: data.title }), said, ...answer),
    );
    this.film = element("div", { className: "film" });
    this.film.style.setProperty("--n", Math.max(this.nSteps, 1));
    this.film.style.setProperty("--cell", this.nSteps > 14 ? "44px" : "54px");
    this.film.append(
      ...[
        this.numbers(),
        this.strip(),
        ...(data.classes ? [this.words(), this.lines(), this.lenses()] : []),
        ...this.headRows(),
      ],
    );
    this.host.replaceChildren(scene, this.controls(), this.film, this.legend());
    if (focused) this.host.querySelector(`[data-place="${focused}"]`)?.focus();
  }

  controls() {
    const button = (text, act, title) => element("button", { textContent: text, onclick: act, title: title ?? "" });
    this.playing = button("▶ Play", () => this.play(), "space");
    if (this.timer) this.playing.textContent = "❚❚ Pause";
    this.switch = button("", () => this.turn());
    const another = this.send ? [button("Another image", () => this.send("another", Date.now()), "n")] : [];
    return element(
      "div",
      { className: "controls" },
      button("◀", () => this.go(this.at.step - 1), "one step back"),
      this.playing,
      button("▶▶", () => this.go(this.at.step + 1), "one step on"),
      this.switch,
      ...another,
      element("span", { className: "wide" }),
      button("Frame as PNG", () => this.save()),
    );
  }

  turn() {
    this.at.film = this.at.film === "steps" ? "heads" : "steps";
    this.build();
    this.draw();
  }

  row(label, cells, name = "") {
    return element("div", { className: `row ${name}` }, element("span", { textContent: label }), ...cells);
  }

  each(n, make) {
    return Array.from({ length: n }, (_, i) => make(i));
  }

  numbers() {
    this.heading = this.each(this.nSteps, (t) =>
      element("button", {
        className: "cell",
        textContent: String(t + 1),
        title: `step ${t + 1} (blocks.${t})`,
        onclick: () => this.go(t),
      }),
    );
    return this.row("step", this.heading);
  }

  strip() {
    const byHead = this.at.film === "heads",
      n = byHead ? this.nHeads : this.nSteps;
    this.frames = this.each(n, (i) =>
      element(
        "button",
        { className: "cell", onclick: () => (byHead ? this.go(this.at.step, i) : this.go(i)) },
        element("canvas"),
      ),
    );
    this.stripRow = this.row("", this.frames);
    this.stripRow.style.setProperty("--n", n > this.nSteps ? n : this.nSteps);
    return this.stripRow;
  }

  words() {
    const { data } = this;
    this.wordCells = this.each(this.nSteps, (t) =>
      element(
        "button",
        { className: "cell", onclick: () => this.go(t), title: `read out after step ${t + 1}` },
        data.classes[this.top.at(t + 1, 0)],
        element("br"),
        element("b", { textContent: percent(this.topProbability.at(t + 1, 0)) }),
      ),
    );
    return this.row("the answer so far", this.wordCells, "words");
  }

  lines() {
    const box = document.createElementNS("http://www.w3.org/2000/svg", "svg"),
      n = this.nSteps;
    box.setAttribute("viewBox", `0 0 ${n} 1`);
    box.setAttribute("preserveAspectRatio", "none");
    box.setAttribute("class", "lines");
    box.setAttribute("aria-hidden", "true");
    const draw = (name, attributes) => {
      const one = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries({ fill: "none", "vector-effect": "non-scaling-stroke", ...attributes }))
        one.setAttribute(key, value);
      box.append(one);
      return one;
    };
    draw("path", { d: `M0 1H${n}M0 0H${n}`, stroke: "currentColor", "stroke-opacity": 0.25 });
    draw("path", {
      d: `M0 ${1 - this.data.chance}H${n}`,
      stroke: "currentColor",
      "stroke-dasharray": "2 4",
      "stroke-opacity": 0.6,
    });
    this.data.likely.forEach((_, i) => {
      const points = this.each(n, (t) => `${t + 0.5} ${1 - this.likelyProbability.at(t + 1, i)}`);
      draw("polyline", { points: points.join(" "), stroke: this.colour(i), "stroke-width": 2 });
    });
    this.marker = draw("path", { stroke: STRONG, "stroke-width": 2 });
    return this.row("its probability", [box]);
  }

  lenses() {
    this.lensCells = this.each(this.nSteps, (t) =>
      element("button", { className: "cell", onclick: () => this.go(t), title: this.patches(t) }, element("canvas")),
    );
    this.lensCells.forEach((cell, t) => {
      const map = heat(this.patchTarget.part(t + 1), this.rows, this.columns, 1, this.data.colours.probability);
      cell.setAttribute("aria-label", `patches after step ${t + 1}: ${this.patches(t)}`);
      paint(cell.firstChild, SMALL, { picture: this.picture, map, alpha: 0.8, smooth: false });
    });
    return this.row("what each patch answers", this.lensCells);
  }

  patches(t) {
    const says = this.patchAnswer.part(t + 1),
      own = says.filter((k) => k === this.data.answer).length;
    return `${own} of ${says.length} patches answer ${this.data.classes[this.data.answer]}`;
  }

  headRows() {
    this.grid =
      this.heads || this.data.off.length
        ? this.each(this.nHeads, (h) => this.each(this.nSteps, (t) => this.headCell(t, h)))
        : null;
    if (!this.grid) return [];
    return this.grid.map((cells, h) => this.row(`without head ${h}`, cells));
  }

  headCell(t, h) {
    const lost = this.heads?.lost.at(t, h) ?? 0,
      off = this.isOff(t, h);
    const cell = element("button", { className: `cell${off ? " off" : ""}`, onclick: () => this.toggle(t, h) });
    cell.textContent = Math.abs(lost) < 0.005 ? "" : `${lost > 0 ? "−" : "+"}${Math.round(100 * Math.abs(lost))}`;
    cell.setAttribute("aria-pressed", off);
    cell.title = this.worth(t, h);
    cell.setAttribute("aria-label", cell.title);
    cell.dataset.place = `${t} ${h}`;
    return cell;
  }

  worth(t, h) {
    const name = `head ${h} at step ${t + 1}`;
    if (!this.heads) return name;
    const { left, random, answer } = this.heads,
      { classes } = this.data,
      own = classes[this.data.answer];
    if (this.isOff(t, h)) return `${name} is off; with it ${own} would have ${percent(left.at(t, h))}`;
    const without = `${own} ${percent(left.at(t, h))}, answer ${classes[answer.at(t, h)]}`;
    return `without ${name}: ${without}; an equally large random change: ${percent(random.at(t, h))}`;
  }

  legend() {
    const scale = (stops) => {
      const bar = element("canvas", { width: 90, height: 1 }),
        context = bar.getContext("2d");
      for (let x = 0; x < 90; x++) ((context.fillStyle = `rgb(${mixed(stops, x / 89)})`), context.fillRect(x, 0, 1, 1));
      return bar;
    };
    const { colours, lossColours } = this.data;
    this.most = element("span");
    const entries = [element("span", {}, "attention from CLS: 0", scale(colours.attention), this.most)];
    if (this.data.classes)
      entries.push(
        element(
          "span",
          {},
          `${this.data.classes[this.data.answer]}, patch by patch: 0`,
          scale(colours.probability),
          "100 %",
        ),
      );
    if (this.grid)
      entries.push(
        element(
          "span",
          {},
          "probability in points: gained without",
          scale([rgb(lossColours[0]), this.neutral(), rgb(lossColours[1])]),
          "lost without",
        ),
      );
    const keys = [
      ["←", "→"],
      " step ",
      ["↑", "↓"],
      " head ",
      ["space"],
      " plays ",
      ...(this.send ? [["n"], " another image", " · click a cell: that head is off"] : []),
    ];
    entries.push(
      element(
        "span",
        {},
        ...keys.flatMap((one) =>
          typeof one === "string" ? [one] : one.map((key) => element("kbd", { textContent: key })),
        ),
      ),
    );
    return element("div", { className: "key" }, ...entries);
  }

  neutral() {
    const probe = element("span");
    probe.style.color = "var(--soft)";
    this.host.append(probe);
    const canvas = element("canvas", { width: 1, height: 1 }),
      context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(probe).color;
    context.fillRect(0, 0, 1, 1);
    probe.remove();
    return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  }

  colour(i) {
    const { lines, onDark } = this.data.colours,
      colour = lines[i % lines.length];
    return luminance(this.neutral()) < 0.2 ? (onDark[colour] ?? colour) : colour;
  }

  // What moves with the step and the head

  draw() {
    const { step, head, film } = this.at,
      byHead = film === "heads";
    this.toLink();
    this.stage.setAttribute("aria-label", `the picture under the attention of head ${head} at step ${step + 1}`);
    this.drawStrip(byHead ? `all ${step}` : `one ${head}`, byHead);
    const values = this.attention.part(step, head),
      peak = values.indexOf(largest(values));
    const cross = [((peak % this.columns) + 0.5) / this.columns, (Math.floor(peak / this.columns) + 0.5) / this.rows];
    paint(this.stage, LARGE, { ...this.layer(step, head), path: this.path, pixels: this.data.size, cross });
    const worth = this.heads ? ` ${this.worth(step, head).replace(/^./, (first) => first.toUpperCase())}.` : "";
    this.note.textContent =
      `Step ${step + 1} (blocks.${step}), head ${head}: ${percent(largest(values))} of what CLS attends to is at the ` +
      `cross, ${percent(this.toCls.at(step, head))} is on CLS itself.${worth}`;
    for (const row of [this.heading, this.wordCells, this.lensCells])
      row?.forEach((cell, t) => this.mark(cell, t === step));
    this.frames.forEach((cell, i) => this.mark(cell, i === (byHead ? head : step)));
    this.drawGrid();
    if (this.data.classes) this.drawAnswer();
    this.switch.textContent = byHead ? "One head, all steps" : "All heads, one step";
    this.follow();
  }

  mark(cell, is) {
    cell.classList.toggle("now", is);
    if (is) cell.setAttribute("aria-current", "step");
    else cell.removeAttribute("aria-current");
  }

  layer(step, head) {
    return {
      picture: this.picture,
      map: heat(this.attention.part(step, head), this.rows, this.columns, this.highest, this.data.colours.attention),
    };
  }

  drawStrip(what, byHead) {
    const { step, head } = this.at;
    const shown = this.frames.map((_, i) => (byHead ? [step, i] : [i, head]));
    if (this.shown === what && this.frames[0].firstChild.width === SMALL) return;
    this.shown = what;
    this.highest = Math.max(...shown.map(([t, h]) => largest(this.attention.part(t, h))));
    this.most.textContent = `${percent(this.highest)} (one scale for the row)`;
    this.stripRow.firstChild.textContent = byHead ? `all heads at step ${step + 1}` : `head ${head} at every step`;
    shown.forEach(([t, h], i) => {
      paint(this.frames[i].firstChild, SMALL, this.layer(t, h));
      this.frames[i].setAttribute(
        "aria-label",
        `attention of head ${h} at step ${t + 1}, ${percent(largest(this.attention.part(t, h)))} at its peak`,
      );
    });
  }

  drawGrid() {
    if (!this.grid) return;
    const { step, head } = this.at,
      neutral = this.neutral(),
      [gain, loss] = this.data.lossColours.map(rgb);
    this.grid.forEach((cells, h) =>
      cells.forEach((cell, t) => {
        const lost = this.heads?.lost.at(t, h) ?? 0,
          colour = mixed([neutral, lost < 0 ? gain : loss], Math.abs(lost));
        cell.style.background = `rgb(${colour})`;
        cell.style.color = luminance(colour) > 0.179 ? "black" : "white";
        cell.tabIndex = t === step && h === head ? 0 : -1;
        this.mark(cell, t === step && h === head);
      }),
    );
  }

  drawAnswer() {
    const { step } = this.at,
      { classes, likely, truth, chance } = this.data;
    this.after.textContent = `The answer after step ${step + 1}`;
    this.marker.setAttribute("d", `M${step + 0.5} 0V1`);
    this.bars.replaceChildren(
      ...this.each(this.top.shape[1], (i) => {
        const k = this.top.at(step + 1, i),
          share = this.topProbability.at(step + 1, i),
          place = likely.indexOf(k);
        const fill = element("b"),
          level = element("u", { title: `chance ${percent(chance)}` });
        fill.style.cssText = `width: ${100 * share}%; background: ${place < 0 ? "#8d99ae" : this.colour(place)}`;
        level.style.left = `${100 * chance}%`;
        return element(
          "div",
          { className: "bar" },
          element("span", { textContent: `${classes[k]}${k === truth ? " ✓" : ""}` }),
          element("i", {}, fill, level),
          element("span", { textContent: percent(share) }),
        );
      }),
    );
  }

  follow() {
    const cell = this.heading[this.at.step],
      label = this.stripRow.firstChild.offsetWidth,
      { film } = this;
    const left = cell.offsetLeft - film.offsetLeft,
      right = left + cell.offsetWidth;
    if (left - label < film.scrollLeft) film.scrollLeft = left - label - 4;
    else if (right > film.scrollLeft + film.clientWidth) film.scrollLeft = right - film.clientWidth + 4;
  }

  // A frame as a picture

  save() {
    const { step, head } = this.at,
      side = 380,
      cell = 92,
      gap = 4,
      left = 150,
      row = cell + 46,
      top = side + 80;
    const width = Math.max(left + this.nSteps * (cell + gap) + 20, 900);
    const height = top + 2 * row + 20 + (this.grid ? 26 * this.nHeads : 0);
    const canvas = element("canvas", { width, height }),
      context = canvas.getContext("2d");
    context.fillStyle = `rgb(${this.paper()})`;
    context.fillRect(0, 0, width, height);
    const place = { context, width, side, cell, gap, left, row, top, ink: getComputedStyle(this.host).color };
    this.saveHead(place);
    this.saveStrips(place);
    this.saveGrid(place);
    canvas.toBlob((blob) => {
      const link = element("a", { href: URL.createObjectURL(blob), download: `story_step_${step}_head_${head}.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }

  saveHead({ context, width, side, ink }) {
    const right = side + 50;
    write(context, this.data.title, 20, 34, { font: "bold 20px sans-serif", most: width - 40, ink });
    context.drawImage(this.stage, 20, 50, side, side);
    write(context, `step ${this.at.step + 1}, head ${this.at.head}`, 20, side + 68, { ink });
    let y = 70;
    for (const text of this.data.sentences) y = wrap(context, text, right, y, width - right - 20, ink) + 8;
    for (const bar of this.bars.children) {
      const [name, , share] = bar.children,
        fill = bar.querySelector("b");
      write(context, name.textContent, right, y + 14, { most: 150, ink });
      context.fillStyle = fill.style.backgroundColor;
      context.fillRect(right + 160, y + 2, (width - right - 270) * (parseFloat(fill.style.width) / 100), 13);
      write(context, share.textContent, width - 80, y + 14, { ink });
      y += 22;
    }
  }

  saveStrips({ context, cell, gap, left, row, top, ink }) {
    const rows = [[this.stripRow.firstChild.textContent, this.frames]];
    if (this.lensCells) rows.push(["what each patch answers", this.lensCells]);
    rows.forEach(([label, cells], r) => {
      wrap(context, label, 20, top + r * row + 40, left - 30, ink);
      cells.forEach((one, i) => {
        const x = left + i * (cell + gap),
          y = top + r * row;
        context.drawImage(one.firstChild, x, y + 6, cell, cell);
        if (r === 0 && this.wordCells && this.at.film === "steps") {
          const small = { font: "12px sans-serif", most: cell, ink };
          write(context, this.data.classes[this.top.at(i + 1, 0)], x, y + cell + 22, small);
          write(context, percent(this.topProbability.at(i + 1, 0)), x, y + cell + 38, {
            ...small,
            font: `bold ${small.font}`,
          });
        }
        if (!one.classList.contains("now")) return;
        context.strokeStyle = STRONG;
        context.lineWidth = 3;
        context.strokeRect(x, y + 6, cell, cell);
      });
    });
  }

  saveGrid({ context, cell, gap, left, row, top, ink }) {
    const font = "13px sans-serif";
    this.grid?.forEach((cells, h) => {
      const y = top + 2 * row + 26 * h;
      write(context, `without head ${h}`, 20, y + 17, { font, ink });
      cells.forEach((one, t) => {
        const x = left + t * (cell + gap),
          text = this.isOff(t, h) ? "off" : one.textContent;
        context.fillStyle = one.style.backgroundColor;
        context.fillRect(x, y, cell, 23);
        write(context, text, x + 34, y + 16, { font, ink: one.style.color });
      });
    });
  }

  paper() {
    const probe = element("canvas", { width: 1, height: 1 }),
      context = probe.getContext("2d");
    this.host.style.backgroundColor = "var(--paper)";
    context.fillStyle = getComputedStyle(this.host).backgroundColor;
    this.host.style.backgroundColor = "";
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  }
}

// Single images that open their story

function gallery({ data, parentElement, setTriggerValue }) {
  const open = ({ index, step, head }) => {
    wanted = { step, head };
    setTriggerValue("moment", index);
    document.querySelector("h1")?.scrollIntoView({ behavior: "smooth" });
  };
  const cards = data.moments.map((one) =>
    element(
      "button",
      { className: "moment", onclick: () => open(one) },
      element("img", { src: one.picture, alt: "" }),
      element("span", { textContent: one.title }),
    ),
  );
  const host = element(
    "section",
    { className: "story" },
    element("h2", { textContent: "Moments found by the probes" }),
    element("div", { className: "moments" }, ...cards),
  );
  parentElement.replaceChildren(element("style", { textContent: STYLE }), host);
}

export default function story(component) {
  const { parentElement } = component;
  if (component.data.moments) return gallery(component);
  if (!stories.has(parentElement)) stories.set(parentElement, new Story(parentElement));
  const one = stories.get(parentElement),
    call = (one.calls = (one.calls ?? 0) + 1);
  one.update(component);
  return () => {
    if (one.calls !== call) return; // it was called anew since, on the same element
    one.close();
    stories.delete(parentElement);
  };
}
