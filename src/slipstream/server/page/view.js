// Draws the transcript and the state of the page. Keeps no state of its own beyond the elements of words.

import { clock } from "./transcript.js";

const UNSURE = 0.5;
const PAUSE_SECONDS = [0.5, 1, 2, 3]; // what the model's pause heads predict
const NEAR_END_PIXELS = 48;
const ANNOUNCE_MS = 2000; // a screen reader reads words in groups
const QUIETEST_DB = -54;

const $ = (id) => document.getElementById(id);

let drawn = new Map(); // a turn or a word to its element
let following = true; // the end of the transcript stays in view
let lastTop = 0;
let announcing = null;
const unread = [];

// -------------------------------------------------------------------------------------------------------- transcript

export function drawWord(transcript, word) {
  noteScrolling();
  const element = drawn.get(word) ?? newWord(transcript.turns.at(-1), word);
  const { text, start, end, confidence, language } = word;
  const final = end !== undefined;
  element.firstChild.data = text;
  element.classList.toggle("partial", !final);
  element.classList.toggle("unsure", final && confidence < UNSURE);
  element.dataset.start = clock(start, 1);
  element.dataset.tip = final ? describe(word) : `${clock(start, 2)} · still being written`;
  if (language) element.lang = language;
  if (final) announce(text);
  showTranscript(true);
  $("count").textContent = transcript.words.length;
  if (following) scrollToEnd();
}

function describe({ start, end, confidence, language, alternatives = [] }) {
  const about = [`${clock(start, 2)} – ${clock(end, 2)}`, `${Math.round(confidence * 100)} % confident`];
  if (language) about.push(language);
  if (alternatives.length) about.push(`or ${alternatives.map((other) => other.text).join(", ")}`);
  return about.join(" · ");
}

export function eraseWord(word) {
  const element = drawn.get(word);
  const line = element?.parentElement;
  element?.remove();
  if (line && !line.childElementCount) line.parentElement.remove();
}

export function closeTurn(turn) {
  drawn.get(turn)?.classList.add("over");
}

export function clearTranscript() {
  drawn = new Map();
  $("turns").replaceChildren();
  $("count").textContent = "0";
  following = true;
  lastTop = 0;
  showTranscript(false);
  $("latest").hidden = true;
}

function showTranscript(shown) {
  $("scroll").hidden = !shown;
  $("empty").hidden = shown;
  for (const id of ["copy", "download", "clear"]) $(id).disabled = !shown;
}

function newWord(turn, word) {
  if (!drawn.has(turn)) {
    const item = document.createElement("li");
    const time = document.createElement("time");
    time.textContent = clock(word.start);
    item.append(time, document.createElement("p"));
    drawn.set(turn, item);
    $("turns").append(item);
  }
  const element = document.createElement("span");
  element.className = "word";
  element.append("");
  drawn.set(word, element);
  drawn.get(turn).lastChild.append(element, " ");
  return element;
}

function announce(text) {
  unread.push(text);
  announcing ??= setTimeout(() => {
    $("announcer").textContent = unread.splice(0).join(" ");
    announcing = null;
  }, ANNOUNCE_MS);
}

// --------------------------------------------------------------------------------------------------------- scrolling

function scrollToEnd() {
  const box = $("scroll");
  box.scrollTop = box.scrollHeight;
  lastTop = box.scrollTop;
}

// The reader decides: whoever scrolls back stays there, whoever returns to the end follows it again. Words may come
// between a scroll and its event, so it is looked for before each word too.
function noteScrolling() {
  const { scrollHeight, scrollTop, clientHeight } = $("scroll");
  following = scrollHeight - scrollTop - clientHeight < NEAR_END_PIXELS || (following && scrollTop >= lastTop - 2);
  $("latest").hidden = following;
}
$("scroll").onscroll = noteScrolling;
$("latest").onclick = () => {
  following = true;
  scrollToEnd();
  $("scroll").focus({ preventScroll: true });
};
new ResizeObserver(() => following && scrollToEnd()).observe($("scroll"));

// ----------------------------------------------------------------------------------------------------- state of work

const LABELS = { idle: "Start recording", finishing: "Finishing …", overdue: "Cancel" };

// `phase`: idle, opening, waiting, live, finishing, or overdue, when the last words take long.
export function showPhase(phase, isFile) {
  const active = phase === "live" || phase === "finishing" || phase === "overdue";
  document.body.dataset.phase = phase;
  $("primary-label").textContent = LABELS[phase] ?? "Stop";
  $("primary").setAttribute("aria-disabled", phase === "finishing");
  $("level").hidden = phase === "idle" || isFile;
  $("progress").hidden = !active || !isFile;
  $("open").disabled = phase !== "idle";
  $("invitation").hidden = phase !== "idle";
  $("expectation").hidden = phase === "idle";
  if (phase === "idle") showClock("");
}

export function say(text) {
  $("status").textContent = text;
}

export function showClock(text) {
  $("clock").textContent = text;
}

export function showProgress(part) {
  $("progress").value = part;
}

export function showLevel(peak) {
  const level = Math.max(0, 1 - (20 * Math.log10(peak + 1e-6)) / QUIETEST_DB);
  $("level-bar").style.setProperty("--level", level.toFixed(3));
}

// `kind`: error or info.
export function showNotice(text, kind = "error") {
  $("notice").classList.toggle("error", kind === "error");
  $("notice-text").textContent = text;
  $("notice").hidden = !text;
}

export function showReason(detail) {
  $("reason").textContent = detail;
  $("reason-field").hidden = !detail;
}

export function showStep(event, latencySeconds) {
  $("heard").textContent = clock(event.time, 1);
  $("latency").textContent = `${Math.round(Math.max(0, latencySeconds) * 1000)} ms`;
  $("queue").textContent = `${(event.buffered / 24_000).toFixed(1)} s`;
  const meters = $("pauses").querySelectorAll("meter");
  if (meters.length !== event.pause.length) return makePauseMeters(event.pause);
  event.pause.forEach((probability, index) => (meters[index].value = probability));
}

function makePauseMeters(pause) {
  $("pauses").querySelectorAll("label").forEach((label) => label.remove());
  pause.forEach((probability, index) => {
    const label = document.createElement("label");
    label.append(`${PAUSE_SECONDS[index]} s`, Object.assign(document.createElement("meter"), { value: probability }));
    $("pauses").append(label);
  });
  $("pauses").hidden = pause.length === 0;
}

// ------------------------------------------------------------------------------------------------------------- words

$("turns").onpointerover = ({ target }) => {
  const tip = $("tip");
  tip.hidden = !target.dataset?.tip;
  if (tip.hidden) return;
  tip.textContent = target.dataset.tip;
  const word = target.getBoundingClientRect();
  const left = Math.min(word.left, innerWidth - tip.offsetWidth - 8);
  tip.style.setProperty("left", `${Math.max(8, left)}px`);
  tip.style.setProperty("top", `${word.top - tip.offsetHeight - 6}px`);
};
$("turns").onpointerleave = () => ($("tip").hidden = true);
$("scroll").addEventListener("scroll", () => ($("tip").hidden = true));
$("times").onchange = () => $("turns").classList.toggle("with-times", $("times").checked);
