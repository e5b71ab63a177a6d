"use strict";
// Polls /status once a second and writes what it says. Text only ever enters through textContent.

const POLL_MS = 1000;
const CLASSES = { healthy: "good", degraded: "warn", unhealthy: "bad", live: "good", down: "bad", closed: "good", open: "bad" };
const at = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const digits = Math.abs(value) < 10 && !Number.isInteger(value) ? 1 : 0;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB"];
  let step = 0;
  for (; value >= 1024 && step < units.length - 1; step += 1) value /= 1024;
  return `${number(value)} ${units[step]}`;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${number(seconds * 1e6)} µs`;
  if (seconds < 1) return `${number(seconds * 1000)} ms`;
  if (seconds < 120) return `${number(seconds)} s`;
  if (seconds < 7200) return `${number(seconds / 60)} min`;
  return `${number(seconds / 3600)} h`;
}

function table(id, heads, rows) {
  const head = element("tr");
  for (const text of heads) head.append(element("th", text));
  const body = rows.map((cells) => {
    const row = element("tr");
    for (const text of cells) row.append(element("td", text, CLASSES[text]));
    return row;
  });
  at(id).replaceChildren(head, ...body);
}

function tile(label, value, className) {
  const made = element("div", undefined, "tile");
  made.append(element("span", label), element("b", value, className));
  return made;
}

function show(status) {
  at("version").textContent = status.version;
  at("status").textContent = status.stopping ? "stopping" : status.status;
  at("status").className = `status ${CLASSES[status.status]}`;
  document.title = `${status.status} · Ingestor`;
  at("complaints").replaceChildren(
    ...status.complaints.map((c) => element("li", `${c.component}: ${c.text}`, CLASSES[c.status])),
  );
  const { kinesis, rates, totals, losses, process } = status;
  const loss = (count) => (count > 0 ? "warn" : "");
  at("tiles").replaceChildren(
    tile("messages / s", number(rates.messages)),
    tile("records delivered / s", number(rates.records)),
    tile("delivered / s", bytes(rates.bytes)),
    tile("records delivered", number(totals.records)),
    tile("breaker", kinesis.breaker, CLASSES[kinesis.breaker] || "warn"),
    tile("last delivery", duration(kinesis.last_success_age_s)),
    tile("held in memory", bytes(kinesis.held_bytes)),
    tile("last heartbeat", duration(status.heartbeat_age_s)),
    tile("reconnections", number(losses.reconnections)),
    tile("gaps / ids repaired", `${number(losses.gaps_detected)} / ${number(losses.ids_repaired)}`),
    tile("holes declared", number(losses.holes_declared), loss(losses.holes_declared)),
    tile("dead letters", number(losses.dead_letters), loss(losses.dead_letters)),
    tile("memory", bytes(process.memory_bytes)),
    tile("running for", duration(status.uptime_s)),
  );
  table(
    "connections",
    ["connection", "state", "for", "last message", "subscriptions"],
    Object.entries(status.websocket.connections).map(([name, c]) => [
      name, c.state, duration(c.state_age_s), duration(c.last_message_age_s), `${c.acknowledged} of ${c.subscriptions}`,
    ]),
  );
  table(
    "latency",
    ["stage", "median", "95 %", "99 %"],
    [
      ...Object.entries(status.latency),
      ...Object.entries(status.venue_lag).map(([kind, lag]) => [`(venue to receipt: ${kind})`, lag]),
    ].map(([name, q]) => [name, duration(q.p50), duration(q.p95), duration(q.p99)]),
  );
  table(
    "channels",
    ["channel", "batches", "bytes"],
    Object.entries(status.channels).map(([name, c]) => [name, number(c.batches), bytes(c.bytes)]),
  );
  const holes = status.details.holes || [];
  at("holes-section").hidden = holes.length === 0;
  table(
    "holes",
    ["symbol", "stream", "first", "last", "reason"],
    holes.map((h) => [h.symbol, h.stream, String(h.first), String(h.last), h.reason]),
  );
}

async function poll() {
  try {
    const response = await fetch("/status", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    show(await response.json());
  } catch (error) {
    at("status").textContent = `no answer (${error.message})`;
    at("status").className = "status bad";
  } finally {
    setTimeout(poll, document.hidden ? 10 * POLL_MS : POLL_MS);
  }
}

poll();
