// Counts what other thresholds would keep, and plays clips under the pointer. Makes no requests.
"use strict";

const model = JSON.parse(document.getElementById("model").textContent);
const dataset = JSON.parse(document.getElementById("dataset").textContent);
const WHOLE = 1, REJECTED = 2, UNKNOWN = 4;
const STEPS = 1000;
const byId = (name) => document.getElementById(name);

async function unpackRows() {
  const bytes = Uint8Array.from(atob(model.data), (letter) => letter.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(plain).arrayBuffer();
  const columns = model.sliders.map((_, at) => new Float64Array(buffer, at * model.rows * 8, model.rows));
  return { columns, flags: new Uint8Array(buffer, model.sliders.length * model.rows * 8, model.rows) };
}

// One side of one signal: the rule that is there, or the one that moving the slider would add.
class Side {
  constructor(figure, slider, which) {
    this.slider = slider;
    this.which = which;
    this.rule = slider[which];
    this.input = figure.querySelector(`input.${which}`);
    this.output = figure.querySelector(`output.${which}`);
    this.line = figure.querySelector(`.line.${which}`);
    this.input.setAttribute("aria-label", `${slider.signal} ${which === "low" ? "at least" : "at most"}`);
    this.reset();
  }

  reset() {
    this.value = this.rule ? this.rule.value : null;
    const end = this.which === "low" ? 0 : STEPS;
    const { least, most } = this.slider;
    this.input.value = this.rule ? Math.round(((this.value - least) / (most - least || 1)) * STEPS) : end;
    this.show();
  }

  moved() {
    const place = Number(this.input.value);
    const end = this.which === "low" ? 0 : STEPS;
    const { least, most } = this.slider;
    // At its end a side without a rule rejects nothing. Numbers are short, as people write them, except at the ends.
    const exact = place === 0 ? least : place === STEPS ? most : null;
    const short = Number((least + ((most - least) * place) / STEPS).toPrecision(4));
    this.value = !this.rule && place === end ? null : exact ?? short;
    this.show();
  }

  get changed() {
    return this.value !== (this.rule ? this.rule.value : null);
  }

  show() {
    const { least, most } = this.slider;
    this.output.textContent = this.value === null ? "any" : String(Number(this.value.toPrecision(4)));
    this.line.hidden = this.value === null;
    const share = this.value === null ? 0 : (this.value - least) / (most - least || 1);
    this.line.style.left = `${100 * Math.min(Math.max(share, 0), 1)}%`;
    this.line.classList.toggle("moved", this.changed);
    this.input.setAttribute("aria-valuetext", this.output.textContent);
  }

  get sign() {
    return this.rule ? this.rule.sign : this.which === "low" ? "<" : ">";
  }

  // Whether a value is rejected: true, false, or null where it is not known.
  rejects(value) {
    if (Number.isNaN(value)) {
      if (!this.rule || this.rule.null === null) return null;
      value = this.rule.null;
    }
    if (this.sign === "<") return value < this.value;
    if (this.sign === "<=") return value <= this.value;
    return this.sign === ">" ? value > this.value : value >= this.value;
  }

  get text() {
    const name = this.rule ? this.rule.rule : `${this.slider.signal}_${this.which}`;
    const bare = this.slider.signal;
    const column = this.rule && this.rule.null !== null ? `coalesce(${bare}, ${this.rule.null})` : bare;
    return `${name}: ${column} ${this.sign} ${this.value}`;
  }
}

function judge(rows, sides) {
  const active = sides.map((side, at) => [side, at >> 1]).filter(([side]) => side.value !== null);
  const counts = { kept: 0, rejected: 0, pending: 0 };
  for (let row = 0; row < model.rows; row++) {
    const flag = rows.flags[row];
    let rejected = (flag & REJECTED) !== 0;
    let unknown = (flag & UNKNOWN) !== 0;
    for (let at = 0; at < active.length && !rejected; at++) {
      const [side, column] = active[at];
      const answer = side.rejects(rows.columns[column][row]);
      if (answer === null) unknown = true;
      else rejected = answer;
    }
    if (rejected) counts.rejected++;
    else if (unknown || !(flag & WHOLE)) counts.pending++;
    else counts.kept++;
  }
  return counts;
}

function shell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function show(counts, before, sides) {
  const factor = model.rows ? model.every / model.rows : 1;
  for (const name of ["kept", "rejected", "pending"]) {
    byId(`count-${name}`).textContent = Math.round(counts[name] * factor).toLocaleString("en");
  }
  if (factor > 1) {
    const share = counts.kept / model.rows;
    // Half of Wilson's interval at 95 %, which is not empty where no clip of the sample is kept.
    const z = 1.96, n = model.rows;
    const margin = (z / (1 + (z * z) / n)) * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
    const error = Math.round(margin * model.every);
    byId("about").textContent = `About (kept within ${error.toLocaleString("en")}, from ${model.rows} clips): `;
  }
  const change = Math.round((counts.kept - before.kept) * factor);
  byId("difference").textContent = change ? `(${change > 0 ? "+" : ""}${change.toLocaleString("en")} kept)` : "";
  const rules = sides.filter((side) => side.changed).map((side) => ` --rule ${shell(side.text)}`);
  byId("command").textContent = `vdot-data select ${shell(dataset)}${rules.join("")}`;
}

async function sliders() {
  const rows = await unpackRows();
  const figures = [...document.querySelectorAll(".signal")];
  const sides = figures.flatMap((figure) => {
    const slider = model.sliders[Number(figure.dataset.slider)];
    return [new Side(figure, slider, "low"), new Side(figure, slider, "high")];
  });
  const before = judge(rows, sides);
  const update = () => show(judge(rows, sides), before, sides);
  let waiting = false;
  for (const side of sides) {
    side.input.addEventListener("input", () => {
      side.moved();
      if (!waiting) requestAnimationFrame(() => { waiting = false; update(); });
      waiting = true;
    });
  }
  byId("reset").addEventListener("click", () => { sides.forEach((side) => side.reset()); update(); });
  byId("copy").addEventListener("click", async () => {
    const range = document.createRange();
    range.selectNodeContents(byId("command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    // Pages from a disk may have no clipboard; the command is selected then.
    if (navigator.clipboard) await navigator.clipboard.writeText(byId("command").textContent).catch(() => {});
  });
  update();
  document.body.dataset.ready = "true";
}

sliders();
