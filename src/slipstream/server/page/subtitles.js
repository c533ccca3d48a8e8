// Subtitles of a transcript, cut into cues by the same rules as the command line: see `cues` in slipstream/formats.py.

import { textOf } from "./transcript.js";

const LINE_CHARS = 42;
const CUE_LINES = 2;
const MIN_CUE_SECONDS = 1;
const MAX_CUE_SECONDS = 7;
const PAUSE_SECONDS = 1;

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
    (/[.?!…]$/.test(text) && text.length >= LINE_CHARS) ||
    wrap(textOf([...group, next]), LINE_CHARS).length > CUE_LINES
  );
}

// As few lines as the text needs, about equally long.
function balanced(text) {
  const count = wrap(text, LINE_CHARS).length;
  let width = Math.min(LINE_CHARS, Math.max(...text.split(" ").map((word) => word.length)));
  while (wrap(text, width).length > count) width++;
  return wrap(text, width).join("\n");
}

function wrap(text, width) {
  const lines = [];
  for (let word of text.split(" ")) {
    if (lines.length && lines.at(-1).length + 1 + word.length <= width) {
      lines.push(`${lines.pop()} ${word}`);
      continue;
    }
    for (; word.length > width; word = word.slice(width)) lines.push(word.slice(0, width));
    lines.push(word);
  }
  return lines;
}

function stamp(seconds, mark) {
  const milliseconds = Math.round(seconds * 1000);
  const part = (unit, base, width = 2) => String(Math.floor(milliseconds / unit) % base).padStart(width, "0");
  return `${part(3_600_000, Infinity)}:${part(60_000, 60)}:${part(1000, 60)}${mark}${part(1, 1000, 3)}`;
}
