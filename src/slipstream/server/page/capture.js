// Runs on the audio thread: gathers 20 ms of microphone at a time and hands it over as 16-bit samples.

class Capture extends AudioWorkletProcessor {
  #block = new Int16Array(Math.round(sampleRate / 50));
  #filled = 0;

  process([channels]) {
    const [samples] = channels;
    for (const sample of samples ?? []) {
      this.#block[this.#filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.#filled === this.#block.length) {
        const full = this.#block;
        this.port.postMessage(full.buffer, [full.buffer]);
        this.#block = new Int16Array(full.length);
        this.#filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
