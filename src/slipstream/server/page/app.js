// Sound in, captions out: the microphone or a file to /v1/stream, its events to the page.

import { Transcript } from "./transcript.js";

const PAUSE_HORIZON = 2; // of the model's heads, the one that looks two seconds ahead
const UNSURE = 0.5;
const UNSENT_BYTES = 1 << 20; // a file is read no faster than the server takes it
const CHUNK_SECONDS = 0.1;
// What browsers do for telephony cuts word beginnings and gates soft speech.
const PLAIN_MICROPHONE = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };

const $ = (id) => document.getElementById(id);
const page = Object.fromEntries(
  ["record", "record-label", "file", "stop", "key", "key-field", "drop", "hint", "turns", "status", "pause", "heard",
    "lag", "delay", "count", "times", "copy", "save", "model"].map((id) => [id, $(id)]),
);

let transcript = new Transcript();
let drawn = new Map(); // a turn or a word to its element
let running = null;

// ---------------------------------------------------------------------------------------------------------- a stream

class Stream {
  #socket;
  #rate;
  #sent = 0;

  constructor(sampleRate) {
    this.#rate = sampleRate;
    const address = new URL("v1/stream", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    address.search = new URLSearchParams({
      encoding: "pcm_s16le",
      sample_rate: sampleRate,
      ...(page.key.value && { auth_id: page.key.value }),
    });
    this.#socket = new WebSocket(address);
    this.#socket.binaryType = "arraybuffer";
    this.opened = new Promise((resolve, reject) => {
      this.#socket.onopen = resolve;
      this.#socket.onerror = () => reject(new Error("The server cannot be reached, or wants another key."));
    });
    this.closed = new Promise((resolve) => {
      this.#socket.onclose = ({ code, reason }) => resolve({ code, reason });
    });
    this.#socket.onmessage = ({ data }) => show(JSON.parse(data), this);
  }

  get secondsSent() {
    return this.#sent / this.#rate;
  }

  send(samples) {
    if (this.#socket.readyState !== WebSocket.OPEN) return;
    this.#socket.send(samples);
    this.#sent += samples.byteLength / 2;
  }

  async room() {
    while (this.#socket.bufferedAmount > UNSENT_BYTES) await new Promise((later) => setTimeout(later, 20));
  }

  finish() {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send('{"type":"close"}');
    else this.#socket.close();
  }
}

async function record(stop) {
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: PLAIN_MICROPHONE });
  const context = new AudioContext();
  try {
    await context.audioWorklet.addModule("capture.js");
    const stream = new Stream(context.sampleRate);
    await stream.opened;
    const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => stream.send(data);
    context.createMediaStreamSource(microphone).connect(capture);
    await Promise.race([stop, stream.closed]);
    stream.finish();
    return await stream.closed;
  } finally {
    microphone.getTracks().forEach((track) => track.stop());
    await context.close();
  }
}

async function play(file, stop) {
  const context = new AudioContext();
  try {
    const sound = await context.decodeAudioData(await file.arrayBuffer()).catch(() => {
      throw new Error(`${file.name} is not a sound this browser can read.`);
    });
    const stream = new Stream(sound.sampleRate);
    await stream.opened;
    let stopped = false;
    Promise.race([stop, stream.closed]).then(() => (stopped = true));
    const step = Math.round(sound.sampleRate * CHUNK_SECONDS);
    for (let start = 0; start < sound.length && !stopped; start += step) {
      stream.send(mono16(sound, start, Math.min(step, sound.length - start)));
      await stream.room();
    }
    stream.finish();
    return await stream.closed;
  } finally {
    await context.close();
  }
}

function mono16(sound, start, length) {
  const mixed = new Int16Array(length);
  const channels = Array.from({ length: sound.numberOfChannels }, (_, index) => sound.getChannelData(index));
  for (let index = 0; index < length; index++) {
    const sum = channels.reduce((total, channel) => total + channel[start + index], 0);
    mixed[index] = Math.max(-1, Math.min(1, sum / channels.length)) * 32767;
  }
  return mixed.buffer;
}

async function run(source, label) {
  if (running) return;
  begin(label);
  const stop = new Promise((resolve) => (running = resolve));
  try {
    const { code, reason } = await source(stop);
    if (code === 1000) say("Done.");
    else say(reason || `The server closed the connection (${code}).`, true);
  } catch (error) {
    say(error.name === "NotAllowedError" ? "The microphone was not allowed." : error.message, true);
  } finally {
    running = null;
    page.record.setAttribute("aria-pressed", "false");
    page["record-label"].textContent = "Record";
    page.stop.disabled = true;
  }
}

// ------------------------------------------------------------------------------------------------------------ events

function show(event, stream) {
  switch (event.type) {
    case "ready":
      page.delay.textContent = `${event.delay.toFixed(2)} s`;
      say("Listening.");
      break;
    case "queued":
      say(`All places are taken: you are number ${event.position} in the queue.`);
      break;
    case "step":
      page.heard.textContent = `${event.time.toFixed(1)} s`;
      page.lag.textContent = `${Math.max(0, Math.round((stream.secondsSent - event.time) * 1000))} ms`;
      if (event.pause.length > PAUSE_HORIZON) page.pause.value = event.pause[PAUSE_HORIZON];
      break;
    case "partial":
    case "word":
      draw(event);
      break;
    case "turn":
      transcript.endTurn();
      drawn.get(transcript.turns.at(-1))?.classList.add("over");
      break;
    case "recovered":
      say(`The model was restarted at ${event.time.toFixed(1)} s: ${event.reason}.`);
      break;
    case "error":
      say(event.message, true);
      break;
  }
}

function draw({ text, start, end, confidence }) {
  const word = transcript.put({ text, start, end, confidence });
  const element = drawn.get(word) ?? newWord(word);
  element.firstChild.textContent = text;
  element.classList.toggle("partial", end === undefined);
  element.classList.toggle("unsure", end !== undefined && confidence < UNSURE);
  element.title = end === undefined ? "" : `${start.toFixed(2)}–${end.toFixed(2)} s, ${Math.round(confidence * 100)} % sure`;
  page.count.textContent = transcript.words.length;
  page.hint.hidden = true;
  page.copy.disabled = page.save.disabled = false;
  page.drop.scrollTop = page.drop.scrollHeight;
}

function newWord(word) {
  const turn = transcript.turns.at(-1);
  if (!drawn.has(turn)) {
    drawn.set(turn, document.createElement("li"));
    page.turns.append(drawn.get(turn));
  }
  const element = document.createElement("span");
  element.className = "word";
  const time = document.createElement("time");
  time.textContent = word.start.toFixed(2);
  element.append(document.createElement("span"), time);
  drawn.set(word, element);
  drawn.get(turn).append(element);
  return element;
}

function begin(label) {
  transcript = new Transcript();
  drawn = new Map();
  page.turns.replaceChildren();
  page.count.textContent = "0";
  page.pause.value = 0;
  page.copy.disabled = page.save.disabled = true;
  page.stop.disabled = false;
  say(label);
}

function say(message, isError = false) {
  page.status.textContent = message;
  page.status.classList.toggle("error", isError);
}

// ---------------------------------------------------------------------------------------------------------- controls

page.record.onclick = () => {
  if (running) return running();
  page.record.setAttribute("aria-pressed", "true");
  page["record-label"].textContent = "Recording";
  run(record, "Opening the microphone …");
};
page.stop.onclick = () => running?.();
page.file.onchange = () => open(page.file.files[0]);
page.times.onchange = () => page.drop.classList.toggle("with-times", page.times.checked);
page.key.value = sessionStorage.getItem("key") ?? "";
page.key.onchange = () => sessionStorage.setItem("key", page.key.value);
page.copy.onclick = async () => {
  await navigator.clipboard.writeText(transcript.text);
  say("Copied.");
};
page.save.onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([transcript.srt], { type: "application/x-subrip" }));
  link.download = "captions.srt";
  link.click();
  URL.revokeObjectURL(link.href);
};

page.drop.ondragover = (event) => {
  event.preventDefault();
  page.drop.classList.add("over");
};
page.drop.ondragleave = () => page.drop.classList.remove("over");
page.drop.ondrop = (event) => {
  event.preventDefault();
  page.drop.classList.remove("over");
  open(event.dataTransfer.files[0]);
};

function open(file) {
  if (file) run((stop) => play(file, stop), `Reading ${file.name} …`);
  page.file.value = "";
}

const info = await fetch("v1/info").then((response) => response.json());
page.model.textContent = info.model;
page.delay.textContent = `${info.delay.toFixed(2)} s`;
page["key-field"].hidden = !info.needs_key;
