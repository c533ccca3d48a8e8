// The words transcribed so far, in turns. Does not touch the page or the network.

export class Transcript {
  turns = []; // { words: [{ text, start, end, confidence }], over }
  duration = 0; // seconds of audio transcribed
  #open = null;

  // Add a word. Partial words, which have no end, replace each other until the final word of the same start.
  put(word) {
    let turn = this.turns.at(-1);
    if (!turn || turn.over) this.turns.push((turn = { words: [], over: false }));
    if (this.#open?.start === word.start) Object.assign(this.#open, word);
    else turn.words.push((this.#open = { ...word }));
    const placed = this.#open;
    if (placed.end !== undefined) this.#open = null;
    return placed;
  }

  // Remove the partial word of a stream that was cut off. Returns it, or null.
  dropOpen() {
    const open = this.#open;
    this.#open = null;
    for (const turn of this.turns) turn.words = turn.words.filter((word) => word !== open);
    this.turns = this.turns.filter((turn) => turn.words.length);
    return open;
  }

  endTurn() {
    const turn = this.turns.at(-1);
    if (turn && !this.#open) turn.over = true;
  }

  get words() {
    return this.turns.flatMap((turn) => turn.words);
  }

  get text() {
    return this.turns.map((turn) => textOf(turn.words) + "\n").join("");
  }
}

export const textOf = (words) => words.map((word) => word.text).join(" ");

// 75.04 is 1:15; with two `digits`, 1:15.04.
export function clock(seconds, digits = 0) {
  const units = Math.floor(seconds * 10 ** digits + 1e-6) / 10 ** digits;
  const [hours, minutes] = [Math.floor(units / 3600), Math.floor(units / 60) % 60];
  const rest = (units % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}
