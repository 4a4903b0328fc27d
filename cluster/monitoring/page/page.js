// The page: asks Prometheus every few seconds, through the server that sent it, and draws the table of panels.

const TABLE = JSON.parse(document.getElementById("table").textContent);
const REFRESH_SECONDS = 5, POINTS = 180;
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
const now = async (query, view) => (await ask("query", { query: filled(query, view), time: view.end })).result;

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

// The run to show and the time span: up to now, and from no earlier than the first scrape of the run.
async function look() {
  const span = Number($("span").value), step = Math.max(5, Math.round(span / POINTS));
  const end = Math.floor(Date.now() / 1000 / step) * step, view = { job: $("job").value, step, end, window: Math.max(30, 4 * step) };
  const seen = await ask("query_range", { query: filled('count(up{job="$job"})', view), start: end - span, end, step });
  const first = seen.result[0]?.values[0][0] ?? end - span;
  return { ...view, start: Math.min(first, end - 12 * step) };
}

// --- parts of the page ---

async function drawTiles(view) {
  const values = await Promise.all(TABLE.tiles.map(tile => now(tile.query, view)));
  $("tiles").replaceChildren(...TABLE.tiles.map((tile, i) => {
    const text = values[i].length ? number(Number(values[i][0].value[1]), tile.unit) : "–";
    return element("div", { class: "tile" }, element("b", {}, text), element("span", {}, tile.title));
  }));
}

async function drawPanel(panel, card, view) {
  const series = await seriesOf(panel, view), plot = card.querySelector(".plot"), heat = panel.kind === "heatmap";
  card.dataset.series = series.length;
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
  $("alerts").replaceChildren(...(boxes.length ? boxes : [element("div", { class: "quiet" }, "No alert is firing")]));
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
    const query = filled(runbook.query, view), answer = await now(runbook.query, view);
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
  const found = await ask("query", { query: "count by (job) (last_over_time(spherescale_ranks[7d]))" });
  const jobs = found.result.map(({ metric }) => metric.job).sort();
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
    $("state").textContent = `as of ${clock(Date.now() / 1000, 0)}`;
    $("state").className = "";
  } catch (error) {
    $("state").textContent = `not current: ${error.message}`;
    $("state").className = "lost";
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
