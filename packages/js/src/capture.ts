// Runs on the audio thread: collects the microphone in blocks of 20 ms and posts them as 16-bit samples.
// After the message "end" it posts what is left, then null, and stops.

declare const sampleRate: number;
declare function registerProcessor(name: string, processor: unknown): void;
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}

const BLOCK = Math.round(sampleRate / 50);

class Capture extends AudioWorkletProcessor {
  #block = new Int16Array(BLOCK);
  #filled = 0;
  #ended = false;

  constructor() {
    super();
    this.port.onmessage = () => {
      if (this.#filled) this.port.postMessage(this.#block.slice(0, this.#filled));
      this.port.postMessage(null);
      this.#ended = true;
    };
  }

  process([channels]: Float32Array[][]): boolean {
    if (this.#ended) return false;
    for (const sample of channels?.[0] ?? []) {
      this.#block[this.#filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.#filled === BLOCK) {
        this.port.postMessage(this.#block, [this.#block.buffer]);
        this.#block = new Int16Array(BLOCK);
        this.#filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("slipstream-capture", Capture);
