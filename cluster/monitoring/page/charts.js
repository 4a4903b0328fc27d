"use strict";
// Drawing: lines and stacks as SVG, heatmaps on a canvas, numbers as text. Independent of Prometheus.
// A series is {name, points: [[unix seconds, value], ...]}, by time; the values are finite.

const COLOURS = 8, MARGIN = { left: 52, right: 8, top: 6, bottom: 18 };
const DIGIT = 6.5; // the width in pixels of the widest character of an axis

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// --- numbers as text ---

function number(value, unit = "", digits = 3) {
  if (!Number.isFinite(value)) return String(value);
  if (value === 0) return "0";
  if (unit === "share") return `${significant(100 * value, digits)} %`;
  if (unit === "seconds") return duration(value, digits);
  if (unit === "bytes") return scaled(value, digits, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"], " ");
  return Math.abs(value) < 1e5 ? significant(value, digits) : scaled(value, digits, 1000, ["", "k", "M", "G", "T"], " ");
}

function significant(value, digits) {
  const size = Math.abs(value);
  if (size < 1e-3) return value.toExponential(digits - 2);
  return size >= 1000 && digits < 5 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

function scaled(value, digits, base, names, space) {
  let at = 0;
  while (Math.abs(value) >= base && at < names.length - 1) { value /= base; at += 1; }
  return significant(value, digits) + (names[at] && space + names[at]);
}

function duration(seconds, digits) {
  const size = Math.abs(seconds);
  if (size < 1e-3) return `${significant(seconds * 1e6, digits)} µs`;
  if (size < 1) return `${significant(seconds * 1e3, digits)} ms`;
  if (size < 120) return `${significant(seconds, digits)} s`;
  if (size < 7200) return `${significant(seconds / 60, digits)} min`;
  return size < 172800 ? `${significant(seconds / 3600, digits)} h` : `${significant(seconds / 86400, digits)} d`;
}

// The labels of the marks of an axis, with as many digits as make them distinct.
function labels(marks, unit) {
  for (let digits = 3; ; digits += 1) {
    const texts = marks.map(mark => number(mark, unit, digits));
    if (digits === 9 || new Set(texts).size === marks.length) return texts;
  }
}

const clock = (seconds, span) => new Date(seconds * 1000).toLocaleString("en-GB", span > 86400
  ? { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" }
  : span < 600 ? { hour: "2-digit", minute: "2-digit", second: "2-digit" } : { hour: "2-digit", minute: "2-digit" });

// --- scales ---

// About `count` round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten.
function ticks(low, high, count = 4) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function decades(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.max(first + 1, Math.ceil(Math.log10(high)));
  const every = Math.ceil((last - first) / 5);
  return Array.from({ length: Math.ceil((last - first) / every) + 1 }, (_, i) => 10 ** (first + i * every));
}

// The unit in which marks are round numbers: KiB, MiB, … for bytes; minutes, hours, days for seconds.
function roundIn(unit, high) {
  if (unit === "bytes" && high >= 1024) return 1024 ** Math.floor(Math.log2(high) / 10);
  return unit === "seconds" ? [86400, 3600, 60].find(size => high >= 2 * size) ?? 1 : 1;
}

const least = values => values.reduce((a, b) => Math.min(a, b), Infinity); // Math.min(...) fails on 100,000 of them
const most = values => values.reduce((a, b) => Math.max(a, b), -Infinity);

// The scale of some values: {marks, at}; at(value) is 0 at the lowest mark and 1 at the highest.
function scale(values, logarithmic, unit) {
  let low = least(values), high = most(values);
  if (logarithmic && low > 0) {
    const marks = decades(low, high), [a, b] = [marks[0], marks.at(-1)].map(Math.log10);
    return { marks, at: value => (Math.log10(value) - a) / (b - a) };
  }
  if (low >= 0 && low < 0.6 * high) low = 0; // 0 is close enough to be shown too
  if (high - low < 1e-9 * Math.max(Math.abs(high), 1e-9)) { // a flat line is drawn in the middle, or at 0
    const about = Math.abs(high) / 2 || 1;
    const top = unit === "share" && high <= 1 ? 1 : Infinity; // a share is at most 1
    [low, high] = [high === 0 ? 0 : low - about, Math.min(high + about, top)];
  }
  const size = roundIn(unit, high), marks = ticks(low / size, high / size).map(mark => mark * size);
  const [a, b] = [marks[0], marks.at(-1)];
  return { marks, at: value => (value - a) / (b - a) };
}

// --- lines and stacks ---

const colourOf = i => i < COLOURS ? `var(--c${i})` : "var(--axis)"; // more colours could not be told apart

function drawLines(plot, panel, series, domain) {
  const { clientWidth: width, clientHeight: height } = plot;
  const stacked = panel.kind === "stack" ? stack(series) : null;
  if (panel.logarithmic) series = series.map(s => ({ ...s, points: s.points.filter(([, v]) => v > 0) }));
  const values = stacked ? [0, ...stacked.flatMap(s => s.map(p => p[2]))] : series.flatMap(s => s.points.map(p => p[1]));
  const { marks, at } = scale(values.length ? values : [0, 1], panel.logarithmic, panel.unit);
  const texts = labels(marks, panel.unit), left = Math.max(MARGIN.left, 8 + DIGIT * most(texts.map(text => text.length)));
  const x = t => left + (t - domain[0]) / (domain[1] - domain[0]) * (width - left - MARGIN.right);
  const y = value => height - MARGIN.bottom - at(value) * (height - MARGIN.top - MARGIN.bottom);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": panel.title });
  drawAxes(svg, marks, texts, x, y, height, domain);
  for (const [i, one] of [...series.entries()].reverse()) { // the first is drawn on top
    const colour = colourOf(i);
    const edge = stacked ? stacked[i].map(([t, , top]) => [t, top]) : one.points;
    if (stacked) {
      const back = stacked[i].map(([t, bottom]) => [t, bottom]).reverse();
      svg.append(element("path", { d: path(edge, x, y) + path(back, x, y).replace("M", "L") + "Z", fill: colour, opacity: 0.45 }));
    }
    svg.append(element("path", { class: "curve", d: path(edge, x, y), stroke: colour }));
  }
  plot.replaceChildren(svg);
  follow(plot, svg, panel, series, domain, x);
}

function drawAxes(svg, marks, texts, x, y, height, domain) {
  const [left, right] = domain.map(x);
  for (const [i, mark] of marks.entries()) {
    svg.append(element("line", { class: mark === marks[0] ? "base" : "grid", x1: left, x2: right, y1: y(mark), y2: y(mark) }));
    svg.append(element("text", { x: left - 6, y: y(mark) + 4, "text-anchor": "end" }, texts[i]));
  }
  const span = domain[1] - domain[0];
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    const t = domain[0] + share * span;
    svg.append(element("text", { x: x(t), y: height - 4, "text-anchor": anchor }, clock(t, span)));
  }
}

// A gap of more than three usual distances breaks the line: there were no scrapes then.
function path(points, x, y) {
  const usual = least(points.slice(1).map((p, i) => Math.abs(p[0] - points[i][0])));
  return points.map(([t, value], i) => {
    const gap = i && Math.abs(t - points[i - 1][0]) > 3.5 * usual;
    return `${i && !gap ? "L" : "M"}${x(t).toFixed(1)} ${y(value).toFixed(1)}`;
  }).join("");
}

// Of each series [time, bottom, top], each on top of the ones before; missing values count as 0.
function stack(series) {
  const times = [...new Set(series.flatMap(s => s.points.map(p => p[0])))].sort((a, b) => a - b);
  const tops = new Map(times.map(t => [t, 0]));
  return series.map(({ points }) => {
    const values = new Map(points);
    return times.map(t => {
      const bottom = tops.get(t), top = bottom + (values.get(t) ?? 0);
      tops.set(t, top);
      return [t, bottom, top];
    });
  });
}

// A cursor under the mouse, with the values there.
function follow(plot, svg, panel, series, domain, x) {
  const cursor = element("line", { class: "cursor", y1: MARGIN.top, y2: plot.clientHeight - MARGIN.bottom, visibility: "hidden" });
  svg.append(cursor);
  const times = [...new Set(series.flatMap(s => s.points.map(p => p[0])))].sort((a, b) => a - b);
  plot.onmousemove = event => {
    const mouse = event.clientX - plot.getBoundingClientRect().left;
    const t = times.reduce((best, one) => Math.abs(x(one) - mouse) < Math.abs(x(best) - mouse) ? one : best, times[0]);
    const found = series.map(s => [s.name, s.points.find(p => p[0] === t)]).filter(([, p]) => p);
    cursor.setAttribute("x1", x(t)); cursor.setAttribute("x2", x(t)); cursor.setAttribute("visibility", "visible");
    tip(plot, mouse, [clock(t, domain[1] - domain[0]), ...found.slice(0, 10).map(([name, p]) => `${name}: ${number(p[1], panel.unit)}`)]);
  };
  plot.onmouseleave = () => { cursor.setAttribute("visibility", "hidden"); plot.querySelector(".tip")?.remove(); };
}

function tip(plot, x, lines) {
  plot.querySelector(".tip")?.remove();
  const box = element("div", { class: "tip" }, ...lines.map(line => element("div", {}, line)));
  plot.append(box);
  const left = x + 14 + box.offsetWidth > plot.clientWidth ? x - 14 - box.offsetWidth : x + 14;
  box.style.left = `${Math.max(0, left)}px`;
  box.style.top = "8px";
}

// --- heatmaps: one row per series, so that a thousand ranks fit and one that differs stands out ---

function drawHeatmap(plot, panel, series, domain) {
  const { clientWidth: width, clientHeight: height } = plot, sharp = window.devicePixelRatio || 1;
  const canvas = element("canvas", { width: width * sharp, height: height * sharp, role: "img", "aria-label": panel.title });
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  const times = series[0].points.map(p => p[0]), step = times.length > 1 ? times[1] - times[0] : 1;
  const range = heatRange(series), [low, high] = [style("--heat-low"), style("--heat-high")].map(rgb);
  const inner = { w: width - MARGIN.left - MARGIN.right, h: height - MARGIN.top - MARGIN.bottom };
  const x = t => MARGIN.left + (t - domain[0]) / (domain[1] - domain[0]) * inner.w, row = inner.h / series.length;
  series.forEach((one, i) => {
    for (const [t, value] of one.points) {
      const left = Math.max(MARGIN.left, x(t - step)), share = (value - range[0]) / (range[1] - range[0]);
      pen.fillStyle = `rgb(${low.map((c, k) => c + (high[k] - c) * share)})`;
      pen.fillRect(left, MARGIN.top + i * row, Math.max(0, x(t) - left) + 0.5, Math.max(1, row - (row > 6 ? 1 : 0)));
    }
  });
  pen.fillStyle = style("--quiet"); pen.font = "11px system-ui, sans-serif"; pen.textBaseline = "middle"; pen.textAlign = "right";
  const every = Math.ceil(series.length / 10);
  for (let i = 0; i < series.length; i += every) pen.fillText(series[i].short, MARGIN.left - 6, MARGIN.top + (i + 0.5) * row);
  const span = domain[1] - domain[0];
  for (const [share, align] of [[0, "left"], [0.5, "center"], [1, "right"]]) {
    pen.textAlign = align; pen.fillText(clock(domain[0] + share * span, span), x(domain[0] + share * span), height - 8);
  }
  plot.replaceChildren(canvas);
  plot.onmouseleave = () => plot.querySelector(".tip")?.remove();
  plot.onmousemove = event => {
    const box = plot.getBoundingClientRect(), at = Math.floor((event.clientY - box.top - MARGIN.top) / row);
    const one = series[Math.min(Math.max(at, 0), series.length - 1)], mouse = event.clientX - box.left;
    const near = one.points.reduce((best, p) => Math.abs(x(p[0]) - mouse) < Math.abs(x(best[0]) - mouse) ? p : best);
    tip(plot, mouse, [clock(near[0], span), `${one.name}: ${number(near[1], panel.unit)}`]);
  };
}

// The lowest and highest value; at least a fifth apart, or the noise of equal ranks would look like stragglers.
function heatRange(series) {
  const values = series.flatMap(s => s.points.map(p => p[1]));
  const low = least(values), high = most(values);
  return [Math.min(low, 0.8 * high), high || 1];
}

const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
