// Runs on the audio thread: gathers 20 ms of microphone at a time and hands it over as 16-bit samples.

const BLOCK = Math.round(sampleRate / 50);

class Capture extends AudioWorkletProcessor {
  #block = new Int16Array(BLOCK);
  #filled = 0;

  process([channels]) {
    const [samples] = channels;
    for (const sample of samples ?? []) {
      this.#block[this.#filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.#filled === BLOCK) {
        this.port.postMessage(this.#block.buffer, [this.#block.buffer]);
        this.#block = new Int16Array(BLOCK);
        this.#filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
