"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const one = (query, root = document) => root.querySelector(query);
const all = (query, root = document) => [...root.querySelectorAll(query)];

// --- tables: sorted by a click on a heading, filtered by words and by the values of a column

const number = text => parseFloat(text.replaceAll(",", ""));

function order(left, right, sign) {
  const [a, b] = [left, right].map(number);
  if (isNaN(a) && isNaN(b)) return sign * left.localeCompare(right);
  return isNaN(a) ? 1 : isNaN(b) ? -1 : sign * (a - b); // what has no value stays last
}

for (const table of all("table.sortable")) {
  const heads = all("th", table), body = table.tBodies[0];
  heads.forEach((head, column) => one("button", head).addEventListener("click", () => {
    const sign = head.ariaSort === "ascending" ? -1 : 1;
    heads.forEach(each => each.removeAttribute("aria-sort"));
    head.ariaSort = sign > 0 ? "ascending" : "descending";
    const text = row => row.cells[column].textContent.trim();
    body.append(...[...body.rows].sort((a, b) => order(text(a), text(b), sign)));
  }));
  const tools = one(`.tools[data-for="${table.id}"]`);
  const filter = () => {
    const words = one("input[type=search]", tools).value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = all("select", tools).filter(each => each.value);
    let count = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every(word => text.includes(word))
        && chosen.every(each => row.cells[each.dataset.column].textContent.trim() === each.value);
      row.hidden = !fits;
      count += fits;
    }
    one(".count", tools).textContent = `${count} of ${body.rows.length}`;
  };
  tools.addEventListener("input", event => {
    if (event.target.matches(".columns")) table.classList.toggle("all", event.target.checked);
    else filter();
  });
  filter();
}

// --- charts

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const palette = ["#4c78d8", "#e8743b", "#19a979", "#b06fd8", "#d9364f", "#13a4b4", "#b58900", "#d668a8", "#7d8f1f", "#8a6d5b", "#5f6c85", "#2f9e44"];
const names = [...new Set(data.boards.flatMap(board => board.points.map(point => point.method)))];
const narrow = () => innerWidth < 640;

function config() {
  const [ink, quiet, line] = ["--ink", "--quiet", "--line"].map(colour);
  return {
    background: null, font: "system-ui, sans-serif", view: {stroke: null},
    axis: {labelColor: quiet, titleColor: ink, gridColor: line, domainColor: quiet, tickColor: quiet, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 600, titlePadding: 8},
    legend: {labelColor: ink, titleColor: quiet, labelFontSize: 12, symbolSize: 90, labelLimit: 160},
  };
}

function draw(id, spec, patch = vega => vega) {
  const full = {
    width: "container", height: narrow() ? 320 : 400, autosize: {type: "fit", contains: "padding"}, config: config(), ...spec,
  };
  const {$schema, ...vega} = vegaLite.compile(full).spec; // without a schema no version is compared
  return vegaEmbed(`#${id}`, patch(vega), {mode: "vega", actions: false, renderer: "svg", tooltip: {theme: document.documentElement.dataset.theme}});
}

const legend = kinds => ({
  scale: {domain: kinds, range: kinds.map((_, k) => palette[k % palette.length])},
  legend: narrow() ? {orient: "bottom", columns: 3, title: null} : {orient: "right", title: null},
});
const chosen = {name: "chosen", select: {type: "point", fields: ["method"]}, bind: "legend"};

function options(id, choices, redraw) {
  const select = document.getElementById(id);
  if (!select.options.length) {
    select.append(...Object.entries(choices).map(([value, each]) => new Option(each.title, value)));
    select.addEventListener("change", redraw);
  }
  return select.value;
}

const costs = {
  seconds_per_image: {title: "seconds an image, in a batch"}, seconds_per_image_batch_1: {title: "seconds an image, alone"},
  gflops_per_image: {title: "GFLOP an image"}, network_calls: {title: "network calls an image"}, parameters: {title: "parameters"},
  train_images: {title: "training images"}, train_pflops: {title: "training PFLOP"}, train_seconds: {title: "training seconds"},
};
const qualities = {
  kid: {title: "KID", low: true, error: "kid_se"}, kid_test: {title: "KID, test split", low: true, error: "kid_test_se"},
  kid_second: {title: "KID, second extractor", low: true, error: "kid_second_se"}, fd: {title: "FD", low: true},
  label_accuracy: {title: "label accuracy", error: "label_accuracy_se"}, recall: {title: "recall"}, precision: {title: "precision"},
};

function known(choices, rows) {
  return Object.fromEntries(Object.entries(choices).filter(([key]) => rows.some(row => Number.isFinite(row[key]))));
}

function front(points, x, y, low) {
  const found = [];
  for (const point of [...points].sort((a, b) => a[x] - b[x] || (low ? 1 : -1) * (a[y] - b[y])))
    if (!found.length || (low ? point[y] < found.at(-1)[y] : point[y] > found.at(-1)[y])) found.push(point);
  return found;
}

const shown = value => value === 0 ? "0" : Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(3));

function pareto() {
  const board = data.boards[document.getElementById("pareto-board")?.value || 0];
  const x = options("pareto-x", known(costs, data.boards.flatMap(each => each.points)), pareto);
  const y = options("pareto-y", known(qualities, data.boards.flatMap(each => each.points)), pareto);
  const quality = qualities[y], title = y.startsWith("kid") || y === "fd" ? `${quality.title} (${board.metric}), lower is better` : `${quality.title}, higher is better`;
  const points = board.points.filter(point => Number.isFinite(point[x]) && Number.isFinite(point[y])).map(point => ({
    ...point, label: point.own ? point.method : `${point.method}, ${point.steps} steps`,
    low: quality.error && point[quality.error] ? point[y] - 2 * point[quality.error] : null,
    high: quality.error && point[quality.error] ? point[y] + 2 * point[quality.error] : null,
  }));
  const best = front(points, x, y, quality.low);
  const floors = board.floors.filter(row => Number.isFinite(row[y])).map(row => ({...row, value: row[y]}));
  const [ink, quiet] = ["--ink", "--quiet"].map(colour);
  const scale = document.getElementById("pareto-log").checked ? {type: "log", nice: false, padding: 24} : {zero: false, nice: true, padding: 24};
  const across = {field: x, type: "quantitative", title: costs[x].title, scale, axis: {format: "~g", tickCount: 6, labelOverlap: true}};
  const up = (field = y) => ({field, type: "quantitative", title, scale: {zero: false, padding: 12}, axis: {format: "~g"}});
  const dim = {condition: {param: "chosen", value: 1}, value: .15};
  const tooltip = [{field: "label", title: "method"}, {field: y, title: quality.title, format: ".4f"}, {field: x, title: costs[x].title, format: ".3~g"},
    ...(quality.error ? [{field: quality.error, title: "standard error", format: ".4f"}] : []), {field: "n", title: "images"}, {field: "works_on", title: "works on"}];
  const layer = [
    {data: {values: floors}, mark: {type: "rule", strokeDash: [5, 4], color: quiet}, encoding: {y: up("value")}},
    {data: {values: floors}, mark: {type: "text", align: "right", dx: -4, dy: -6, color: quiet, fontStyle: "italic"}, encoding: {y: up("value"), x: {value: {expr: "width"}}, text: {field: "method"}}},
    {data: {values: best}, mark: {type: "line", interpolate: "step-after", color: ink, strokeWidth: 1.5, opacity: .45}, encoding: {x: across, y: up()}},
    {mark: {type: "line", strokeWidth: 1, strokeDash: [2, 2]}, encoding: {x: across, y: up(), color: {field: "method", ...legend(names)}, opacity: dim}},
    {mark: {type: "rule", strokeWidth: 1.5}, encoding: {x: across, y: {...up("low")}, y2: {field: "high"}, color: {field: "method"}, opacity: dim}},
    {params: [chosen], mark: {type: "point", filled: true}, encoding: {x: across, y: up(), color: {field: "method"}, opacity: dim, tooltip,
      size: {condition: {test: "datum.own", value: 110}, value: 45}, shape: {condition: {test: "datum.works_on === 'latents'", value: "square"}, value: "circle"}}},
    {mark: {type: "text"}, encoding: {x: across, y: up(), text: {field: "label"}}},
  ];
  const patch = spec => { // Vega places labels where they cover nothing; Vega-Lite has no word for it
    const mark = name => spec.marks.find(each => each.name === name);
    const label = mark("layer_6_marks");
    label.from = {data: "layer_5_marks"};
    label.encode = {update: {text: {field: "datum.label"}, fill: {value: ink}, fontSize: {signal: "datum.datum.own ? 12 : 10"}, fontWeight: {signal: "datum.datum.own ? 600 : 400"}}};
    label.transform = [{type: "label", size: {signal: "[width, height]"}, anchor: ["right", "top-right", "bottom-right", "left", "top", "bottom", "top-left", "bottom-left"],
      offset: [3, 3, 3, 3, 6, 6, 3, 3], avoidMarks: ["layer_4_marks", "layer_2_marks", "layer_1_marks"], padding: 0}];
    return spec;
  };
  const path = best.map(point => `${point.label} (${shown(point[x])}; ${shown(point[y])})`).join(" → ");
  document.getElementById("front").textContent = points.length ? `The front, from the cheapest to the best: ${path}.` : "Nothing to compare was measured here.";
  return draw("pareto-chart", {data: {values: points}, layer}, patch);
}

function training() {
  const rows = data.curves;
  const y = options("curve-y", known({loss: {title: "loss"}, lr: {title: "learning rate"}, grad_norm: {title: "gradient norm"}}, rows), training);
  const axes = known({images: {title: "training images"}, pflops: {title: "training PFLOP"}}, rows);
  const x = options("curve-x", axes, training), parts = [...new Set(rows.map(row => row.method))];
  const across = {field: x, type: "quantitative", title: axes[x]?.title, scale: {zero: false}, axis: {format: "~s", tickCount: narrow() ? 4 : 8}};
  const up = field => ({field, type: "quantitative", title: y.replace("lr", "learning rate").replace("grad_norm", "gradient norm"), scale: {type: "log", nice: false, padding: 8}, axis: {format: "~g", tickCount: 6}});
  const dim = {condition: {param: "chosen", value: 1}, value: .12}, color = {field: "method", type: "nominal", ...legend(parts)};
  const tooltip = [{field: "method", title: "part"}, {field: "images", title: "images", format: ","}, {field: y, format: ".4g"}, ...(y === "loss" ? [{field: "validation_loss", title: "held out", format: ".4g"}] : [])];
  const layer = [{transform: [{filter: `isValid(datum.${y})`}], params: [chosen], mark: {type: "line", point: {size: 22}, strokeWidth: 1.8}, encoding: {x: across, y: up(y), color, opacity: dim, tooltip}}];
  if (y === "loss" && rows.some(row => Number.isFinite(row.validation_loss)))
    layer.push({transform: [{filter: "isValid(datum.validation_loss)"}], mark: {type: "line", strokeDash: [5, 4], point: {size: 22, shape: "diamond"}}, encoding: {x: across, y: up("validation_loss"), color, opacity: dim, tooltip}});
  return draw("training-chart", {data: {values: rows}, layer});
}

function spectrum() {
  const rows = data.spectra;
  const choices = known({ratio: {title: "power over that of real images"}, power: {title: "power"}}, rows);
  const y = options("spectrum-y", choices, spectrum), kinds = [...new Set(rows.map(row => row.method))];
  const tooltip = [{field: "method", title: "row"}, {field: "frequency", title: "cycles a pixel", format: ".3f"}, {field: "power", format: ".3g"},
    ...(choices.ratio ? [{field: "ratio", title: "over real", format: ".2f"}] : []), {field: "masked", title: "masked from noise level", format: ".2f"}];
  const layer = [{params: [chosen], mark: {type: "line", strokeWidth: 1.8, point: {size: 18}}, encoding: {
    x: {field: "frequency", type: "quantitative", title: "cycles a pixel", axis: {format: "~g", tickCount: narrow() ? 5 : 10}}, y: {field: y, type: "quantitative", title: choices[y]?.title, scale: {type: "log", nice: false, padding: 8}, axis: {format: "~g", tickCount: 6}},
    color: {field: "method", type: "nominal", ...legend(kinds)}, opacity: {condition: {param: "chosen", value: 1}, value: .12}, tooltip}}];
  if (y === "ratio") layer.unshift({data: {values: [{ratio: 1}]}, mark: {type: "rule", strokeDash: [5, 4], color: colour("--quiet")}, encoding: {y: {field: "ratio", type: "quantitative"}}});
  return draw("spectrum-chart", {data: {values: rows}, layer});
}

const charts = {"pareto-chart": pareto, "training-chart": training, "spectrum-chart": spectrum};
const redraw = () => Promise.all(Object.keys(charts).filter(id => document.getElementById(id)).map(id => charts[id]()));
let width = innerWidth, later;
addEventListener("resize", () => {
  if (innerWidth === width) return; // the bars of a phone's browser come and go
  width = innerWidth;
  clearTimeout(later);
  later = setTimeout(redraw, 150);
});
for (const id of ["pareto-log", "pareto-board"]) document.getElementById(id)?.addEventListener("change", pareto);
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* the choice holds for this visit */ }
  redraw();
});

// --- samples

document.getElementById("seeds")?.addEventListener("change", event => {
  for (const gallery of all(".gallery")) gallery.hidden = gallery.dataset.seeds !== event.target.value;
});
for (const button of all(".gallery button"))
  button.addEventListener("click", () => all("dialog").find(each => each.dataset.method === button.dataset.method).showModal());
for (const dialog of all("dialog")) dialog.addEventListener("click", event => event.target === dialog && dialog.close());

redraw().then(() => { document.body.dataset.ready = "yes"; });
