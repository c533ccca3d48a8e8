// Audio that waits to be transcribed. A source appends 16-bit samples; a reader takes them by position and may go back.

export class Tape {
  #chunks = [];
  #first = 0;
  #length = 0;
  #kept;
  #waiting = [];
  ended = false;

  // `keepSeconds`: how far back a reader can go.
  constructor(rate, keepSeconds = Infinity) {
    this.rate = rate;
    this.#kept = keepSeconds * rate;
  }

  // Seconds of audio so far.
  get duration() {
    return this.#length / this.rate;
  }

  // The number of the first sample that is still kept.
  get first() {
    return this.#first;
  }

  append(samples) {
    if (this.ended) return;
    this.#chunks.push(samples);
    this.#length += samples.length;
    while (this.#length - this.#first - this.#chunks[0].length >= this.#kept) {
      this.#first += this.#chunks.shift().length;
    }
    this.#notify();
  }

  // No more audio comes. `at`: the number of samples to keep, for a reader that stops early.
  end(at = this.#length) {
    this.#length = Math.min(at, this.#length);
    this.ended = true;
    this.#notify();
  }

  // At most `count` samples from number `position` on. Waits for them; null at the end.
  async read(position, count) {
    while (position >= this.#length) {
      if (this.ended) return null;
      await new Promise((resolve) => this.#waiting.push(resolve));
    }
    let index = this.#chunks.length - 1;
    let start = this.#chunks.reduce((total, chunk) => total + chunk.length, this.#first);
    for (; ; index--) {
      start -= this.#chunks[index].length;
      if (start <= position || index === 0) break;
    }
    const from = Math.max(0, position - start);
    return this.#chunks[index].subarray(from, from + Math.min(count, this.#length - position));
  }

  #notify() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
