// The page: asks Prometheus every few seconds, through the server that sent it, and draws the table of panels.

const TABLE = JSON.parse(document.getElementById("table").textContent);
const REFRESH_SECONDS = 5, POINTS = 180;
const FROZEN_SECONDS = 150; // the last step is known to two minutes: a rate over one, looked up once a minute
const $ = id => document.getElementById(id);

async function ask(path, parameters) {
  const response = await fetch(`/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const answer = await response.json();
  if (answer.status !== "success") throw new Error(answer.error || `Prometheus: ${response.status}`);
  return answer.data;
}

// --- queries ---

const quoted = text => text.replace(/[\\"]/g, "\\$&");
const filled = (query, view) => query.replaceAll("$job", quoted(view.job)).replaceAll("$window", `${view.window}s`);
const legend = (text, labels) => text.replace(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? "");
const at = async (query, view, time) => (await ask("query", { query: filled(query, view), time })).result;
const valueAt = async (query, view, time) => Number((await at(query, view, time))[0]?.value[1] ?? NaN);

async function seriesOf(panel, view) {
  const { start, end, step } = view;
  const answers = await Promise.all(panel.queries.map(([query]) => ask("query_range", { query: filled(query, view), start, end, step })));
  const found = answers.flatMap((answer, i) => answer.result.map(({ metric, values }) => ({
    name: legend(panel.queries[i][1], metric),
    short: metric.rank ?? metric.host ?? "",
    points: values.map(([t, value]) => [t, Number(value)]).filter(([, value]) => Number.isFinite(value)),
  })));
  const shown = found.filter(one => one.points.length);
  const last = one => one.points.at(-1)[1], sign = panel.lowest_first ? -1 : 1;
  if (panel.kind !== "heatmap" && shown.length > COLOURS) return shown.sort((a, b) => sign * (last(b) - last(a)));
  return shown.sort((a, b) => a.short.localeCompare(b.short, "en", { numeric: true })); // a rank has one colour everywhere
}

// The run to show and the time span: up to now or, if no rank answers, to the last scrape; from the first scrape at the
// earliest. `moved` is the time of the last step.
async function look() {
  const span = Number($("span").value), step = Math.max(5, Math.round(span / POINTS)), today = Date.now() / 1000;
  const view = { job: $("job").value, step, now: today, window: Math.max(30, 4 * step) };
  view.answers = (await valueAt('sum(up{job="$job"})', view, today)) > 0;
  view.seen = view.answers ? today : await lastScrape(view);
  view.end = view.answers || isNaN(view.seen) ? Math.floor(today / step) * step : view.seen;
  view.moved = await valueAt('max(max_over_time(timestamp(job:spherescale_steps:rate1m{job="$job"} > 0)[1d:1m]))', view, view.end);
  view.frozen = view.answers && today - view.moved > FROZEN_SECONDS;
  const seen = await ask("query_range", { query: filled('count(spherescale_ranks{job="$job"})', view), start: view.end - span, end: view.end, step });
  const first = seen.result[0]?.values[0][0] ?? view.end - span;
  return { ...view, start: Math.min(first, view.end - 12 * step) };
}

// The time of the last scrape of a run that no longer answers, NaN if it is not found: first roughly, then exactly. It is
// read from a rule's result, which is one series however many ranks there are. The steps are shorter than the five minutes
// for which Prometheus keeps a value: between longer ones, a run that was short would not be seen.
async function lastScrape(view) {
  const scrapes = 'timestamp(job:spherescale_steps_left:min{job="$job"})';
  for (const [back, step] of [["10m", 1], ["7d", 60], ["1y", 240]]) {
    const known = await valueAt(`max_over_time(${scrapes}[${back}:${step}s])`, view, view.now);
    if (!Number.isFinite(known)) continue;
    const end = Math.min(known + step + REFRESH_SECONDS, view.now);
    const { result } = await ask("query_range", { query: filled(scrapes, view), start: known, end, step: REFRESH_SECONDS });
    return Math.max(known, ...(result[0]?.values ?? []).map(([, value]) => Number(value)));
  }
  return NaN;
}

// --- parts of the page ---

// A run that is gone has its last values with their age, and no speed or time left; one that hangs, the age of its step.
async function drawTiles(view) {
  const values = await Promise.all(TABLE.tiles.map(tile => !view.answers && tile.present ? NaN : valueAt(tile.query, view, view.end)));
  const totals = await Promise.all(TABLE.tiles.map(tile => tile.total ? valueAt(tile.total, view, view.end) : NaN));
  $("tiles").replaceChildren(...TABLE.tiles.map((tile, i) => {
    const known = Number.isFinite(values[i]);
    const text = !known ? "–" : tile.ago ? ago(view.end - values[i]) : part(values[i], totals[i], tile.unit);
    const box = element("div", { class: "tile" }, element("b", {}, text), element("span", {}, tile.title));
    const since = view.answers ? view.moved : view.seen;
    if ((!view.answers || view.frozen) && !tile.present && !tile.ago && known) box.append(element("small", {}, ago(since)));
    return box;
  }));
}

const part = (value, total, unit = "") => number(value, unit) + (Number.isFinite(total) ? ` of ${number(total, unit)}` : "");
const ago = time => `${number(Math.max(0, Date.now() / 1000 - time), "seconds", 2)} ago`;

async function drawPanel(panel, card, view) {
  const series = await seriesOf(panel, view), plot = card.querySelector(".plot"), heat = panel.kind === "heatmap";
  card.dataset.series = series.length;
  card.hidden = panel.of_margin && !series.length;
  card.querySelector(".legend").replaceChildren(...(heat && series.length ? heatLegend(panel, series) : lineLegend(panel, series)));
  if (!series.length) {
    plot.onmousemove = null;
    return plot.replaceChildren(element("div", { class: "none" }, panel.if_empty || "no data yet"));
  }
  (heat ? drawHeatmap : drawLines)(plot, panel, series, [view.start, view.end]);
}

function lineLegend(panel, series) {
  const shown = series.length > COLOURS ? series.slice(0, COLOURS / 2) : series;
  const entries = shown.map((one, i) => {
    const key = element("i", { style: `background: ${colourOf(i)}` });
    return element("span", {}, key, `${one.name} `, element("b", {}, number(one.points.at(-1)[1], panel.unit)));
  });
  const more = series.length - shown.length;
  return more ? [...entries, element("span", {}, `and ${more} more, ${panel.lowest_first ? "higher" : "lower"}`)] : entries;
}

function heatLegend(panel, series) {
  const [low, high] = heatRange(series);
  return [element("span", {}, number(low, panel.unit)), element("i", { class: "scale" }), element("span", {}, number(high, panel.unit)),
    element("span", {}, "one row per rank")];
}

async function drawAlerts(view) {
  const { alerts } = await ask("alerts", {});
  const groups = {};
  for (const alert of alerts.filter(one => one.labels.job === view.job)) (groups[keyOf(alert)] ??= []).push(alert);
  const sorted = Object.values(groups).sort((a, b) => urgency(b[0]) - urgency(a[0]));
  const open = new Set([...document.querySelectorAll("#alerts details[open]")].map(one => one.dataset.key));
  const boxes = await Promise.all(sorted.map(group => alertBox(group, view, open)));
  const words = await condition(view);
  if (words || !boxes.length) boxes.unshift(element("div", { class: words ? "gone" : "quiet" }, words || "No alert is firing"));
  $("alerts").replaceChildren(...boxes);
}

// Why the run is not training, or nothing if it is.
async function condition(view) {
  if (view.frozen) return `No training step for about ${ago(view.moved).replace(" ago", "")}.`;
  if (view.answers) return Number.isFinite(view.moved) ? "" : "No step seen yet: in its first two minutes a monitor sees none.";
  const [step, planned] = await Promise.all(["step", "planned_steps"].map(name => valueAt(`max(spherescale_${name}{job="$job"})`, view, view.end)));
  const place = Number.isFinite(step) ? `, step ${part(step, planned)}` : "";
  // A rank that ends deletes its target; one that is killed, or cannot be reached, leaves it.
  const left = (await at('up{job="$job"}', view, view.now)).length;
  if (left || isNaN(view.seen)) return `No rank answers${isNaN(view.seen) ? "" : `: the last scrape was ${ago(view.seen)}`}${place}.`;
  return `Ended ${clock(view.seen, view.now - view.seen)}${place}.`;
}

const keyOf = alert => `${alert.state} ${alert.labels.alertname}`;
const urgency = alert => 2 * (alert.state === "firing") + (alert.labels.severity === "page");

// An alert and everything that it fires for; opened, its description, its runbook and the result of the runbook's query.
async function alertBox(group, view, open) {
  const { labels, state } = group[0], runbook = TABLE.runbooks[labels.alertname], key = keyOf(group[0]);
  const since = Math.min(...group.map(alert => Date.parse(alert.activeAt))) / 1000;
  const title = element("summary", {}, element("b", {}, labels.alertname), group.length > 1 ? `${group.length} times: ` : "", group[0].annotations.summary,
    element("small", {}, `${state === "firing" ? labels.severity : "pending"}, for ${number(Math.max(0, Date.now() / 1000 - since), "seconds")}`));
  const box = element("details", { class: `alert ${labels.severity} ${state}`, "data-key": key }, title);
  box.open = open.has(key) || (state === "firing" && labels.severity === "page" && !open.size);
  if (group.length > 1) box.append(element("ul", {}, ...group.slice(0, 20).map(alert => element("li", {}, alert.annotations.summary))));
  box.append(element("p", {}, ...prose(group[0].annotations.description ?? "")));
  if (runbook) {
    const query = filled(runbook.query, view), answer = await at(runbook.query, view, view.now);
    box.append(element("p", {}, ...prose(runbook.meaning)), element("p", {}, ...prose(runbook.shows)));
    box.append(element("pre", {}, query), answerTable(answer, runbook.query));
    box.append(element("ol", {}, ...runbook.steps.map(step => element("li", {}, ...prose(step)))));
  }
  return box;
}

// Text with `code` in it, as nodes.
const prose = text => text.split("`").map((part, i) => i % 2 ? element("code", {}, part) : part);

function answerTable(answer, query) {
  if (!answer.length) return element("p", {}, "The query has no result.");
  const when = query.includes("timestamp(");
  return element("table", {}, ...answer.slice(0, 20).map(({ metric, value }) => {
    const text = when ? clock(Number(value[1]), 0) : number(Number(value[1]));
    return element("tr", {}, element("td", {}, place(metric)), element("td", {}, text));
  }));
}

// The labels of a result, as text: "rank 3 on host1: head".
function place({ rank, host, job, instance, __name__, ...others }) {
  const where = [rank && `rank ${rank}`, host].filter(Boolean).join(" on ");
  return [where, Object.values(others).join(", ")].filter(Boolean).join(": ") || "whole run";
}

// --- the loop ---

function layOut() {
  return Object.entries(TABLE.panels).map(([group, panels]) => {
    const cards = panels.map(panel => element("article", { class: "panel", "data-title": panel.title },
      element("h3", {}, panel.title), element("p", {}, panel.about), element("div", { class: "plot" }), element("div", { class: "legend" })));
    $("groups").append(element("section", {}, element("h2", {}, TABLE.titles[group]), element("div", { class: "panels" }, ...cards)));
    return panels.map((panel, i) => [panel, cards[i]]);
  }).flat();
}

async function findRuns() {
  let jobs = [];
  for (const back of ["7d", "1y"]) {
    if (jobs.length) break;
    const found = await ask("query", { query: `count by (job) (last_over_time(spherescale_ranks[${back}]))` });
    jobs = found.result.map(({ metric }) => metric.job).sort();
  }
  if (!jobs.length) throw new Error("no run has been scraped yet: is it training, and is log.metrics_port set?");
  const chosen = jobs.includes($("job").value) ? $("job").value : jobs[0];
  $("job").replaceChildren(...jobs.map(job => element("option", { value: job }, job)));
  $("job").value = chosen;
  $("job").hidden = jobs.length < 2;
  $("name").textContent = jobs.length < 2 ? chosen : "spherescale";
  document.title = `${chosen} · spherescale`;
}

async function refresh(cards) {
  if (document.hidden) return; // a hidden tab need not be drawn
  try {
    await findRuns();
    const view = await look();
    await Promise.all([drawTiles(view), drawAlerts(view), ...cards.map(([panel, card]) => drawPanel(panel, card, view))]);
    $("state").textContent = view.answers ? `as of ${clock(view.now, 0)}` : `last scrape: ${isNaN(view.seen) ? "unknown" : clock(view.seen, 86401)}`;
    $("state").className = view.answers ? "" : "lost";
  } catch (error) {
    $("state").textContent = `not current: ${error.message}`;
    $("state").className = "lost";
    $("alerts").replaceChildren(element("div", { class: "gone" }, "It is not known which alerts are firing."));
  }
}

async function main() {
  const cards = layOut();
  let again = 0;
  const cycle = async () => {
    await refresh(cards);
    clearTimeout(again); // a choice of the user meanwhile started another cycle
    again = setTimeout(cycle, REFRESH_SECONDS * 1000);
  };
  for (const id of ["job", "span"]) $(id).addEventListener("change", cycle);
  document.addEventListener("visibilitychange", cycle);
  await cycle();
}

main();
