// What has been heard so far: turns of words, and their two plain forms. Knows no page and no socket.

export class Transcript {
  turns = [];
  #open = null;

  // Words of one start replace each other, until the final one closes it.
  put(word) {
    const turn = this.turns.at(-1)?.over === false ? this.turns.at(-1) : this.#newTurn();
    if (this.#open?.start === word.start) Object.assign(this.#open, word);
    else turn.words.push((this.#open = { ...word }));
    const placed = this.#open;
    if (placed.end !== undefined) this.#open = null;
    return placed;
  }

  endTurn() {
    const turn = this.turns.at(-1);
    if (turn && !turn.over && !this.#open) turn.over = true;
  }

  get words() {
    return this.turns.flatMap((turn) => turn.words);
  }

  get text() {
    return this.turns.map((turn) => turn.words.map((word) => word.text).join(" ")).join("\n");
  }

  get srt() {
    const cues = this.turns.flatMap((turn) => cuesOf(turn.words));
    return cues.map((cue, index) => `${index + 1}\n${clock(cue.start)} --> ${clock(cue.end)}\n${cue.text}\n`).join("\n");
  }

  #newTurn() {
    this.turns.push({ words: [], over: false });
    return this.turns.at(-1);
  }
}

// Two lines of 42 characters and 6 seconds are what subtitles usually allow.
const CUE_CHARACTERS = 84;
const CUE_SECONDS = 6;

function cuesOf(words) {
  const cues = [];
  for (const { text, start, end = start } of words) {
    const cue = cues.at(-1);
    if (cue && cue.text.length + 1 + text.length <= CUE_CHARACTERS && end - cue.start <= CUE_SECONDS) {
      cue.text += ` ${text}`;
      cue.end = end;
    } else {
      cues.push({ text, start, end });
    }
  }
  return cues;
}

function clock(seconds) {
  const milliseconds = Math.round(seconds * 1000);
  const [hours, minutes, rest] = [milliseconds / 3_600_000, (milliseconds / 60_000) % 60, (milliseconds / 1000) % 60];
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  return `${two(hours)}:${two(minutes)}:${two(rest)},${String(milliseconds % 1000).padStart(3, "0")}`;
}
