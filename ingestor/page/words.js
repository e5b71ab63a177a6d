'use strict';
// How numbers, times and the state of the service are put into words. Nothing here touches the page.

const UNKNOWN = '–';
const MARKS = { good: '✓', warn: '!', bad: '✕', idle: '…' };
const STATUS_TONES = { healthy: 'good', degraded: 'warn', unhealthy: 'bad' };
const LATE_S = 5; // a watermark that trails by more is worth a word

/** @typedef {'good'|'warn'|'bad'|'idle'} Tone */

/** @param {Tone} tone @returns {string} a sign that says the same as the colour */
export function markOf(tone) {
  return MARKS[tone];
}

/** @param {?number} value @returns {string} such as `2,340` or `3.4` */
export function count(value) {
  if (value === null || value === undefined) return UNKNOWN;
  const digits = Math.abs(value) < 10 && !Number.isInteger(value) ? 1 : 0;
  return value.toLocaleString('en', { maximumFractionDigits: digits });
}

/** @param {?number} value @returns {string} such as `2,340/s` */
export function rate(value) {
  return value === null || value === undefined ? UNKNOWN : `${count(value)}/s`;
}

/** @param {?number} value @returns {string} such as `3.4 MiB` */
export function bytes(value) {
  if (value === null || value === undefined) return UNKNOWN;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let step = 0;
  for (; value >= 1024 && step < units.length - 1; step += 1) value /= 1024;
  return `${count(value)} ${units[step]}`;
}

/** @param {?number} seconds @returns {string} such as `35 ms`, `2.5 s` or `3 h 12 min` */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  if (seconds <= 0) return '0 s';
  if (seconds < 0.001) return `${count(seconds * 1e6)} µs`;
  if (seconds < 1) return `${count(Math.round(seconds * 1000))} ms`;
  if (seconds < 120) return `${count(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** @param {?number} atMs @param {number} nowMs @returns {string} how long ago, by the clock of the service */
export function ago(atMs, nowMs) {
  if (!atMs) return 'none yet';
  const seconds = (nowMs - atMs) / 1000;
  return seconds < 1 ? 'now' : `${duration(seconds)} ago`;
}

/** @param {number} atMs @returns {string} the time of day here, with the date when it was not today */
export function clock(atMs) {
  const at = new Date(atMs);
  const time = at.toLocaleTimeString('en-GB');
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString('en-CA')} ${time}`;
}

/** @param {number} number @param {string} one @param {string=} many @returns {string} such as `1 hole`, `2 holes` */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** @param {object} status @returns {Tone} */
export function toneOf(status) {
  if (status.stopping) return 'warn';
  if (!status.started && status.status !== 'unhealthy') return 'idle';
  return STATUS_TONES[status.status];
}

/** @param {object} status @returns {string} one word for the title and the announcement */
export function wordOf(status) {
  if (status.stopping) return 'Stopping';
  if (!status.started && status.status !== 'unhealthy') return 'Starting';
  return status.status[0].toUpperCase() + status.status.slice(1);
}

/** @param {object} status @returns {string} what a new person should know after ten seconds */
export function headline(status) {
  const flow = `${rate(status.rates.messages ?? 0).replace('/s', ' messages/s')} in`;
  if (status.stopping) return `Stopping. No new messages; ${waiting(status)}.`;
  return `${wordOf(status)}. ${flow}, ${acknowledged(status)}, ${missing(status)}.`;
}

function waiting(status) {
  const channels = Object.values(status.channels).reduce((sum, channel) => sum + channel.bytes, 0);
  const held = channels + status.kinesis.held_bytes;
  return held > 0 ? `${bytes(held)} are still being delivered` : 'all that was received is delivered';
}

function acknowledged(status) {
  if (status.kinesis.last_success_age_s === null) return 'none delivered yet';
  if (status.kinesis.breaker !== 'closed' || status.kinesis.configuration_error !== null) {
    return `Kinesis has taken nothing for ${duration(status.kinesis.last_success_age_s)} (${bytes(status.kinesis.held_bytes)} wait here)`;
  }
  return status.watermark_lag_s > LATE_S ? `acknowledged up to ${duration(status.watermark_lag_s)} ago` : 'all acknowledged';
}

function missing(status) {
  const { losses, details } = status;
  const owed = (details.line?.repair?.trades ?? 0) + (details.line?.repair?.bars ?? 0);
  const parts = [];
  if (owed > 0) parts.push(`${plural(owed, 'missing id')} being fetched`);
  if (losses.holes_declared > 0) parts.push(`${plural(losses.holes_declared, 'hole')} declared`);
  if (losses.dead_letters > 0) parts.push(plural(losses.dead_letters, 'dead letter'));
  return parts.length > 0 ? parts.join(', ') : 'nothing missing';
}
