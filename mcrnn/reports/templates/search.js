// Draws the figures of the page of a search, and its table of trials. `_data` of `mcrnn.reports.search_page` says what the
// short names of a trial mean: n number, s state, v values in the order of the fields, e and E its epochs and all of them,
// b smallest error, p parameters, f frames a second, t seconds, c error at every `stride`-th epoch and the last, l last
// epoch, w why it was not trained to its end.
"use strict";
(() => {
const page = JSON.parse(document.getElementById("data").textContent);
const { fields, trials } = page;
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];  // of Okabe and Ito (2008)
const DARK_COLOURS = ["#4aa3df", "#f0803c", "#2fc49a", "#dd9cc0", "#f0b840", "#8accf5"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const $ = id => document.getElementById(id);
const escape = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const number = x => typeof x === "number" ? (Number.isInteger(x) ? String(x) : String(+x.toPrecision(3))) : x == null ? "" : String(x);
const time = t => t == null ? "" : t < 300 ? `${t} s` : t < 2e4 ? `${Math.round(t / 60)} min` : `${(t / 3600).toFixed(1)} h`;

const good = trials.filter(t => t.b != null);
const kind = t => page.architecture < 0 ? "trials" : t.v[page.architecture] ?? "";
const kinds = [...new Set(good.map(kind))].sort();
const colour = t => (dark.matches ? DARK_COLOURS : COLOURS)[kinds.indexOf(kind(t)) % COLOURS.length];
const errors = good.map(t => t.b).sort((a, b) => a - b);
// A few very bad trials must not flatten the others: what is above the top is a triangle at the top.
const top_ = errors.length ? Math.min(errors.at(-1), 2.5 * errors[errors.length >> 1]) * 1.06 : 1;
const many = good.length > 200;

const card = t => {
  const rows = [["error", t.b == null ? "" : t.b.toFixed(4)], ["epochs", `${t.e ?? 0}/${t.E}`], ["parameters", t.p?.toLocaleString("en")],
    ["time", time(t.t)], ...fields.map((field, i) => [field.label, number(t.v[i])])];
  const body = rows.filter(r => r[1] != null && r[1] !== "").map(r => `${escape(r[0])}: <b>${escape(r[1])}</b>`).join("<br>");
  const why = t.w ? `<div style="max-width:19rem;white-space:normal;margin-top:.3rem">${escape(t.w)}</div>` : "";
  return `<b>trial ${t.n}</b>, ${escape(t.s)}<br>${body}${why}`;
};

// ---- figures: each is made when it is scrolled to, and anew when the colours of the system change
const makers = new Map(), charts = new Map();
const base = () => ({
  animation: false, textStyle: { color: css("--ink"), fontFamily: "system-ui, sans-serif" },
  tooltip: { trigger: "item", confine: true, backgroundColor: css("--panel"), borderColor: css("--line"), textStyle: { color: css("--ink"), fontSize: 12 },
    formatter: each => each.data && each.data.trial ? card(each.data.trial) : "" },
});
const axis = (name, more = {}) => ({
  type: "value", name, nameLocation: "middle", nameGap: 26, nameTextStyle: { color: css("--faint") }, axisLabel: { color: css("--faint"), hideOverlap: true },
  axisLine: { onZero: false, lineStyle: { color: css("--faint") } }, splitLine: { show: false }, axisTick: { lineStyle: { color: css("--line") } }, ...more,
});
const steps = (low, high) => {  // the labels 1, 2, 5, 10, ... of a logarithmic axis
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) found.push(...[1, 2, 5].map(m => +`${m}e${e}`));
  const inside = found.filter(v => v >= low && v <= high);
  return inside.length > 1 ? inside.length > 7 ? inside.filter(v => String(v.toExponential())[0] === "1") : inside : [low, high];
};
const labels = more => ({ color: css("--faint"), hideOverlap: true, formatter: number, ...more });
const logAxis = (low, high) => ({ type: "log", min: low, max: high, axisLabel: labels({ customValues: steps(low, high), showMinLabel: null, showMaxLabel: null }), axisTick: { customValues: steps(low, high), lineStyle: { color: css("--line") } } });
const errorAxis = (name, more) => axis(name, { min: 0, max: top_, nameGap: 40, axisLabel: labels({ showMaxLabel: false }), ...more });
const dot = (t, x, y) => ({
  value: [x, y > top_ ? top_ * 0.985 : y], trial: t, symbol: y > top_ ? "triangle" : "circle", symbolSize: (t.s === "finished" ? 9 : 7) - (many ? 3 : 0),
  itemStyle: t.s === "finished" ? { color: colour(t) } : { color: css("--page"), borderColor: colour(t), borderWidth: 1.3 },
});
const dots = (x, y = t => t.b) => kinds.map((name, i) => ({
  type: "scatter", name, data: good.filter(t => kind(t) === name && x(t) != null && y(t) != null).map(t => dot(t, x(t), y(t))),
  itemStyle: { color: (dark.matches ? DARK_COLOURS : COLOURS)[i % COLOURS.length] }, emphasis: { scale: 1.8 }, z: 3,
}));
const legend = () => kinds.length > 1 ? { legend: { top: 0, icon: "circle", itemGap: 12, itemWidth: 12, textStyle: { color: css("--ink") }, inactiveColor: css("--faint") } } : {};
const grid = (more = {}) => ({ left: 58, right: 18, top: kinds.length > 1 ? (innerWidth < 640 ? 64 : 36) : 14, bottom: 44, ...more });

const figure = (element, option, ready = () => {}) => {
  const make = () => {
    charts.get(element)?.dispose();
    const chart = echarts.init(element);
    chart.setOption({ ...base(), ...option() });
    charts.set(element, chart);
    ready(chart);
  };
  makers.set(element, make);
  seen.observe(element);
};
const seen = new IntersectionObserver(entries => entries.forEach(each => {
  if (each.isIntersecting && !charts.has(each.target)) makers.get(each.target)();
}), { rootMargin: "200px" });
new ResizeObserver(() => charts.forEach(chart => chart.resize())).observe(document.body);
dark.addEventListener("change", () => charts.forEach((_, element) => makers.get(element)()));

const epochs = t => t.c.map((_, i) => i === t.c.length - 1 ? t.l : 1 + i * page.stride);
const points = t => { const x = epochs(t); return t.c.map((error, i) => [x[i], error > 0 ? Math.min(error, 4 * top_) : null]); };
const best = good.reduce((a, t) => a == null || (t.s === "finished") > (a.s === "finished") || ((t.s === "finished") === (a.s === "finished") && t.b < a.b) ? t : a, null);

const curvesOption = () => {
  const shown = trials.filter(t => t.c.some(error => error > 0) && (t.b != null || t.s === "diverged"));
  const opacity = Math.max(0.12, Math.min(0.8, 12 / Math.sqrt(shown.length) / 4));
  const smallest = Math.min(...shown.map(t => Math.min(...t.c.filter(error => error > 0))));
  const largest = Math.max(...shown.map(t => Math.min(4 * top_, Math.max(...t.c.filter(error => error > 0)))));
  const lines = kinds.map((name, i) => ({
    // all curves of a kind are one line with gaps: a thousand lines would take the browser a second
    type: "line", name, data: shown.filter(t => kind(t) === name).flatMap(t => [...points(t), [null, null]]), showSymbol: false, silent: true,
    lineStyle: { width: 1, opacity, color: (dark.matches ? DARK_COLOURS : COLOURS)[i % COLOURS.length] }, itemStyle: { color: (dark.matches ? DARK_COLOURS : COLOURS)[i % COLOURS.length] }, emphasis: { disabled: true }, z: 1,
  }));
  const ends = kinds.map(name => ({
    type: "scatter", name, z: 3, data: shown.filter(t => kind(t) === name && t.c.at(-1) > 0).map(t => ({ ...dot(t, t.l, 0), value: points(t).at(-1) })), emphasis: { scale: 1.8 },
  }));
  const winner = trials.find(t => t.n === page.winner) ?? best;
  return { ...legend(), grid: grid(), xAxis: axis("epoch", { min: 0, max: "dataMax", minInterval: 1 }),
    yAxis: axis("validation error", { nameGap: 40, ...logAxis(niceBelow(smallest), largest * 1.1) }),
    series: [...lines, ...ends, { id: "picked", type: "line", data: points(winner), showSymbol: false, silent: true, z: 4, lineStyle: { width: 2.5, color: css("--ink") } }] };
};
const niceBelow = x => { const e = 10 ** Math.floor(Math.log10(x)); return [5, 2, 1].map(m => m * e).find(v => v <= x) ?? e; };
const curvesReady = chart => {
  const pick = each => each.data?.trial && chart.setOption({ series: [{ id: "picked", data: points(each.data.trial) }] });
  chart.on("mouseover", pick);
  chart.on("click", pick);
};

const historyOption = () => {
  let smallest = Infinity;
  const line = [];
  for (const t of trials) {
    if (t.s === "finished" && t.b < smallest) line.push([t.n, smallest = t.b]);
  }
  if (line.length) line.push([trials.at(-1).n, smallest]);
  return { ...legend(), grid: grid(), xAxis: axis("trial", { min: "dataMin", max: "dataMax", minInterval: 1 }), yAxis: errorAxis("validation error"),
    series: [...dots(t => t.n), { type: "line", step: "end", data: line, showSymbol: false, silent: true, z: 1, lineStyle: { color: css("--faint"), width: 1.5 } }] };
};

const scale = i => {  // how the values of a field are placed: names, or numbers on a linear or a logarithmic axis
  const values = good.map(t => t.v[i]).filter(v => v != null);
  if (!values.length) return null;
  if (!fields[i].choice && values.every(v => typeof v === "number") && new Set(values).size > 1) {
    const low = Math.min(...values), high = Math.max(...values);
    return { type: low > 0 && high / low >= 20 ? "log" : "value", low, high, whole: values.every(Number.isInteger) };
  }
  return { type: "category", names: [...new Set(values)].sort((a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a) < String(b) ? -1 : 1).map(String) };
};
const spread = n => ((n * 0.618) % 1 - 0.5) * 0.5;  // so that dots of one name do not hide each other

const slicesOption = i => () => {
  const s = scale(i), label = fields[i].label, pad = s.type === "value" ? (s.high - s.low) * 0.05 : 0;
  const x = s.type === "category"
    ? axis(label, { min: -0.6, max: s.names.length - 0.4, interval: 1, axisTick: { show: false }, axisLabel: { ...labels({ customValues: s.names.map((_, k) => k), interval: 0, fontSize: 10, hideOverlap: false,
        rotate: Math.max(...s.names.map(n => n.length)) > 6 ? 25 : 0 }), formatter: v => s.names[v] ?? "" } })
    : axis(label, s.type === "log" ? logAxis(s.low * 0.9, s.high * 1.1) : { min: s.low - pad, max: s.high + pad, minInterval: s.whole ? 1 : 0, axisLabel: labels({ showMinLabel: false, showMaxLabel: false }) });
  const at = t => t.v[i] == null ? null : s.type === "category" ? s.names.indexOf(String(t.v[i])) + spread(t.n) : t.v[i];
  return { grid: { left: 44, right: 12, top: 12, bottom: s.type === "category" ? 58 : 42 }, xAxis: { ...x, nameGap: s.type === "category" ? 40 : 24 }, yAxis: errorAxis(""), series: dots(at) };
};

const parallelOption = () => {
  const columns = fields.map((field, i) => ({ field, i, s: scale(i) })).filter(c => c.s).slice(0, 14);
  const rows = [...good].sort((a, b) => b.b - a.b);
  const finished = rows.filter(t => t.s === "finished").length;
  const style = { nameTextStyle: { color: css("--ink"), fontSize: 11, lineHeight: 13 }, axisLabel: { color: css("--faint"), fontSize: 10, formatter: number, hideOverlap: true, showMinLabel: true, showMaxLabel: true }, axisLine: { lineStyle: { color: css("--faint") } }, axisTick: { lineStyle: { color: css("--line") } } };
  const axes = columns.map((c, dim) => ({ dim, name: c.field.label.replaceAll(" ", "\n"), ...style, ...(c.s.type === "category" ? { type: "category", data: c.s.names, axisLabel: { ...style.axisLabel, formatter: undefined, interval: 0 } } : c.s.type === "log" ? { type: "log", min: c.s.low, max: c.s.high, axisLabel: { ...style.axisLabel, customValues: steps(c.s.low, c.s.high) } } : { type: "value", min: c.s.low, max: c.s.high, minInterval: c.s.whole ? 1 : 0 }) }));
  axes.push({ dim: columns.length, name: "error", ...style, type: "value", min: niceFloor(errors[0]), max: top_ });
  const low = errors[0], high = errors[Math.floor(errors.length * 0.8)];
  return { parallel: { left: 40, right: 60, top: 66, bottom: 24, axisExpandable: false },
    parallelAxis: axes.map(a => ({ ...a, areaSelectStyle: { width: 18, borderColor: css("--bar"), color: css("--bar"), opacity: 0.25 } })),
    visualMap: { show: false, type: "continuous", dimension: columns.length, min: low, max: high > low ? high : low + 1e-9, inRange: { color: dark.matches ? ["#fde725", "#5ec962", "#21918c", "#3b528b", "#3a2a55"] : ["#440154", "#3b528b", "#21918c", "#5ec962", "#d8e0a0"] } },
    series: [{ type: "parallel", lineStyle: { width: rows.length > 200 ? 0.8 : 1.4, opacity: Math.max(0.2, Math.min(0.85, 9 / Math.sqrt(rows.length) )) }, inactiveOpacity: 0.03, activeOpacity: 0.9, progressive: 0,
      data: rows.map(t => ({ trial: t, value: [...columns.map(c => t.v[c.i] == null ? "-" : c.s.type === "category" ? String(t.v[c.i]) : t.v[c.i]), Math.min(t.b, top_)] })) }] };
};
const niceFloor = x => +(x * 0.95).toPrecision(2);
const parallelReady = chart => chart.on("axisareaselected", () => {
  const series = chart.getModel().getSeries()[0], data = series.getData();
  const active = series.getRawIndicesByActiveState("active").map(i => data.getRawDataItem(i).trial.n);
  const inactive = series.getRawIndicesByActiveState("inactive").length;
  chosen = inactive ? new Set(active) : null;
  drawTable();
});

const costsOption = () => {
  const key = $("cost").value, sign = key === "f" ? -1 : 1, label = $("cost").selectedOptions[0].text;
  const known = good.filter(t => t[key] > 0), values = known.map(t => t[key]);
  let smallest = Infinity;
  const front = [...known].sort((a, b) => sign * (a[key] - b[key]) || a.b - b.b).filter(t => t.b < smallest && (smallest = t.b, true));
  const log = Math.max(...values) > 8 * Math.min(...values);
  return { ...legend(), grid: grid(), xAxis: axis(label + (key === "t" ? " [s]" : ""), log ? logAxis(Math.min(...values) * 0.9, Math.max(...values) * 1.1) : { scale: true }),
    yAxis: errorAxis("validation error"),
    series: [...dots(t => t[key] > 0 ? t[key] : null), { type: "line", step: sign > 0 ? "end" : "start", data: front.filter(t => t.b <= top_).map(t => [t[key], t.b]), showSymbol: false, silent: true, z: 1, lineStyle: { color: css("--faint"), width: 1.5 } }] };
};

// ---- the table of trials
let chosen = null, all = false, order = { column: 2, up: true };
const columns = [["trial", t => t.n], ["state", t => t.s], ["error", t => t.b, t => t.b.toFixed(4)], ["epochs", t => t.e, t => `${t.e}/${t.E}`], ["parameters", t => t.p, t => t.p.toLocaleString("en")], ["time", t => t.t, t => time(t.t)],
  ...fields.map((field, i) => [field.label, t => t.v[i], t => number(t.v[i])]), ["why", t => t.w]];
const drawTable = () => {
  const [, value] = columns[order.column];
  const shown = trials.filter(t => !chosen || chosen.has(t.n)).sort((a, b) => {
    const x = value(a), y = value(b);
    if (x == null || y == null) return (x == null) - (y == null) || a.n - b.n;
    return (order.up ? 1 : -1) * (x < y ? -1 : x > y ? 1 : 0) || a.n - b.n;
  });
  $("trials").tHead.innerHTML = `<tr>${columns.map((c, i) => `<th scope="col"><button data-column="${i}">${escape(c[0])}${i === order.column ? (order.up ? " ↑" : " ↓") : ""}</button></th>`).join("")}</tr>`;
  $("trials").tBodies[0].innerHTML = shown.slice(0, all ? undefined : 20).map(t => `<tr${t.n === page.winner ? ' class="best"' : ""}>${columns.map(([name, get, show]) => {
    const v = get(t);
    return `<td${name === "why" ? ' class="text"' : ""}>${v == null ? "" : escape(show ? show(t) : v)}</td>`;
  }).join("")}</tr>`).join("");
  $("more").hidden = all || shown.length <= 20;
  $("more").textContent = `show all ${shown.length}` + (chosen ? " chosen ones" : "");
};
$("trials").addEventListener("click", event => {
  const column = event.target.dataset?.column;
  if (column == null) return;
  order = { column: +column, up: +column === order.column ? !order.up : true };
  drawTable();
});
$("more").addEventListener("click", () => { all = true; drawTable(); });

if (good.length) {
  figure($("curves"), curvesOption, curvesReady);
  figure($("history"), historyOption);
  fields.forEach((_, i) => {
    if (!scale(i)) return;
    const element = document.createElement("div");
    element.className = "figure";
    $("slices").append(element);
    figure(element, slicesOption(i));
  });
  $("parallel").parentElement.style.setProperty("--wide", `${5.6 * (Math.min(14, fields.length) + 1)}rem`);
  figure($("parallel"), parallelOption, parallelReady);
  figure($("costs"), costsOption);
  $("cost").addEventListener("change", () => charts.has($("costs")) && makers.get($("costs"))());
}
drawTable();
// What is not seen yet is drawn when the browser has nothing else to do, so that it is there on paper and on a quick scroll.
const idle = window.requestIdleCallback ?? (run => setTimeout(run, 200));
const drawRest = () => {
  const next = [...makers.keys()].find(element => !charts.has(element));
  if (next) { makers.get(next)(); idle(drawRest); }
};
addEventListener("load", () => setTimeout(() => idle(drawRest), 500));
requestAnimationFrame(() => setTimeout(() => { document.documentElement.dataset.interactive = Math.round(performance.now()); }));
})();
