// Subtitles of a transcript. The limits are those of slipstream/subtitles.py, which also avoids short last cues.

import { textOf } from "./transcript.js";

const LINE_COLUMNS = 42;
const CUE_LINES = 2;
const MIN_CUE_SECONDS = 1;
const MAX_CUE_SECONDS = 7;
const PAUSE_SECONDS = 1;
const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6]/g;

export function srt(transcript) {
  return cuesOf(transcript)
    .map(({ text, start, end }, index) => `${index + 1}\n${stamp(start, ",")} --> ${stamp(end, ",")}\n${text}\n`)
    .join("\n");
}

export function vtt(transcript) {
  const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const cues = cuesOf(transcript).map(
    ({ text, start, end }) => `\n${stamp(start, ".")} --> ${stamp(end, ".")}\n${escape(text)}\n`,
  );
  return `WEBVTT\n${cues.join("")}`;
}

function cuesOf(transcript) {
  const groups = transcript.turns.flatMap(({ words }) => groupsOf(words.filter((word) => word.end !== undefined)));
  return groups.map((words, index) => {
    const start = words[0].start;
    const limit = groups[index + 1]?.[0].start ?? Math.max(transcript.duration, words.at(-1).end);
    const spoken = Math.min(words.at(-1).end, start + MAX_CUE_SECONDS);
    return { text: balanced(textOf(words)), start, end: Math.max(spoken, Math.min(start + MIN_CUE_SECONDS, limit)) };
  });
}

function groupsOf(words) {
  const groups = [];
  for (const word of words) {
    const group = groups.at(-1);
    if (!group || cueEnds(group, word)) groups.push([word]);
    else group.push(word);
  }
  return groups;
}

function cueEnds(group, next) {
  const text = textOf(group);
  return (
    next.start - group.at(-1).end >= PAUSE_SECONDS ||
    next.end - group[0].start > MAX_CUE_SECONDS ||
    (/[.?!…]$/.test(text) && columns(text) >= LINE_COLUMNS) ||
    wrap(textOf([...group, next]), LINE_COLUMNS).length > CUE_LINES
  );
}

// As few lines as the text needs, about equally long.
function balanced(text) {
  const count = wrap(text, LINE_COLUMNS).length;
  let width = Math.min(LINE_COLUMNS, Math.max(...text.split(" ").map(columns)));
  while (wrap(text, width).length > count) width++;
  return wrap(text, width).join("\n");
}

// A word that is too long for a line has one of its own.
function wrap(text, width) {
  const lines = [];
  for (const word of text.split(" ")) {
    if (lines.length && columns(lines.at(-1)) + 1 + columns(word) <= width) lines.push(`${lines.pop()} ${word}`);
    else lines.push(word);
  }
  return lines;
}

// East Asian wide letters and emoji take two columns.
const columns = (text) => text.length + (text.match(WIDE)?.length ?? 0);

function stamp(seconds, mark) {
  const milliseconds = Math.round(seconds * 1000);
  const part = (unit, base, width = 2) => String(Math.floor(milliseconds / unit) % base).padStart(width, "0");
  return `${part(3_600_000, Infinity)}:${part(60_000, 60)}:${part(1000, 60)}${mark}${part(1, 1000, 3)}`;
}
