// Sends a tape to /v1/stream and reports the server's events in the tape's own time. Reconnects where that can help.

import { problemOfClose, problemOfStatus } from "./problems.js";

const CHUNK_SECONDS = 0.1;
const UNSENT_BYTES = 1 << 18; // a file is sent no faster than the server takes it
const SILENT_MS = 15_000; // a server that owes text and says nothing for this long is gone
const LONGEST_WAIT_SECONDS = 10;
const REWIND_SECONDS = 1; // before the model's delay: a word may have begun there

export class Transcription {
  #tape;
  #key;
  #signal;
  #tell;
  #base = 0; // where in the tape the current stream began, in seconds
  #settled = 0; // the text of the tape up to here is final
  #openWord = null;
  #failures = 0;
  sent = 0; // samples of the tape

  // `tell` takes the server's events, and { type: "retrying", problem, seconds } and { type: "lost", seconds }.
  constructor(tape, { key, signal, tell }) {
    this.#tape = tape;
    this.#key = key;
    this.#signal = signal;
    this.#tell = tell;
  }

  // Transcribe the tape to its end. Returns early when `signal` is aborted; throws a `Problem`.
  async run() {
    while (!this.#signal.aborted) {
      const problem = await this.#connect();
      if (!problem || this.#signal.aborted) return;
      if (!problem.retry || this.#failures >= problem.tries) throw problem;
      const seconds = waitSeconds(this.#failures++);
      this.#tell({ type: "retrying", problem, seconds });
      await pause(seconds, this.#signal);
    }
  }

  // One connection, to its end. Resolves to a `Problem`, or to null when all text has arrived.
  async #connect() {
    const first = this.#tape.first / this.#tape.rate;
    if (first > this.#settled) this.#tell({ type: "lost", seconds: first - this.#settled });
    this.#base = this.#settled = Math.max(first, this.#settled);
    this.#openWord = null;
    const socket = new WebSocket(this.#address());
    const end = await this.#converse(socket);
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    if (end.done) return null;
    return end.opened ? problemOfClose(end.code, end.reason) : problemOfStatus(await probe(this.#key), this.#key !== "");
  }

  #address() {
    const address = new URL("v1/stream", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    address.search = new URLSearchParams({
      encoding: "pcm_s16le",
      sample_rate: this.#tape.rate,
      ...(this.#key && { auth_id: this.#key }),
    });
    return address;
  }

  #converse(socket) {
    let opened = false;
    let lastMessage = Infinity;
    let delay = 0;
    let watch;
    const sending = { closed: false };
    return new Promise((resolve) => {
      const end = (how) => resolve({ opened, ...how });
      this.#signal.addEventListener("abort", () => end({ code: 1000 }), { once: true });
      socket.onopen = () => (opened = true);
      socket.onclose = ({ code, reason }) => end({ code, reason });
      socket.onmessage = ({ data }) => {
        const event = this.#shift(JSON.parse(data));
        lastMessage = performance.now();
        this.#settle(event, delay);
        if (event.type === "ready") {
          delay = event.delay;
          this.#send(socket, sending).then((how) => how && end(how));
        }
        if (event.type === "error") end({ code: event.code, reason: event.message });
        else if (event.type === "done" && sending.closed) end({ done: true });
        else if (event.type !== "done") this.#tell(event);
      };
      watch = setInterval(() => {
        const owed = sending.closed || this.sent / this.#tape.rate > this.#settled + delay + 2 * REWIND_SECONDS;
        if (owed && performance.now() - lastMessage > SILENT_MS) end({ code: 1006, reason: "the server fell silent" });
      }, 1000);
    }).finally(() => clearInterval(watch));
  }

  // Sends the tape from the stream's beginning, then the end. Nothing follows the end.
  async #send(socket, sending) {
    const { rate } = this.#tape;
    this.sent = Math.round(this.#base * rate);
    for (;;) {
      if (this.sent < this.#tape.first) return { code: 1006, reason: "audio was recorded faster than it was sent" };
      const samples = await this.#tape.read(this.sent, Math.round(rate * CHUNK_SECONDS));
      if (socket.readyState !== WebSocket.OPEN) return null;
      if (samples === null) break;
      socket.send(samples);
      this.sent += samples.length;
      while (socket.bufferedAmount > UNSENT_BYTES) await new Promise((later) => setTimeout(later, 20));
    }
    sending.closed = true;
    socket.send('{"type":"close"}');
    return null;
  }

  // An event's times, from those of the stream to those of the tape.
  #shift(event) {
    for (const name of ["time", "start", "end"]) if (name in event) event[name] += this.#base;
    return event;
  }

  // Note how far the text is final, so that a new connection goes on from there.
  #settle(event, delay) {
    if (event.type === "partial") this.#openWord = event;
    if (event.type === "word") {
      this.#openWord = null;
      this.#settled = Math.max(this.#settled, event.end);
      this.#failures = 0;
    }
    if (event.type === "step") {
      const heard = Math.min(event.time - delay - REWIND_SECONDS, this.#openWord?.start ?? Infinity);
      this.#settled = Math.max(this.#settled, heard);
    }
    if (event.type === "done") this.#settled = this.#base + event.duration;
  }
}

// The HTTP status that the server's description has for this key; 0 if there is no answer.
async function probe(key) {
  return await serverInfo(key).then(({ status }) => status, () => 0);
}

export function serverInfo(key) {
  return fetch("v1/info", { headers: key ? { "kyutai-api-key": key } : {}, cache: "no-store" });
}

// 0.5, 1, 2, 4, 8, 10, 10 ... seconds, and up to a quarter more, so that clients do not all return at once.
function waitSeconds(failures) {
  return Math.min(LONGEST_WAIT_SECONDS, 0.5 * 2 ** failures) * (1 + Math.random() / 4);
}

// Ends early when the browser is online again, or when `signal` is aborted.
function pause(seconds, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, seconds * 1000);
    addEventListener("online", resolve, { once: true });
    signal.addEventListener("abort", resolve, { once: true });
  });
}
