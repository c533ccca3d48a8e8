// The parts that need no server. Tests run on the modules of the page, which are what `npm run build` writes.

import assert from "node:assert/strict";
import { test } from "node:test";

const built = new URL("../../../src/slipstream/server/page/slipstream/", import.meta.url);
const { Recorder, SlipstreamClient, serverInfo } = await import(new URL("index.js", built));
const { errorOfClose, errorOfStatus } = await import(new URL("errors.js", built));
const { converse } = await import(new URL("connection.js", built));
const { encode, toInt16 } = await import(new URL("samples.js", built));
const { Tape } = await import(new URL("tape.js", built));

const SERVER = "http://127.0.0.1:1";

test("a tape is read from any position that is kept", () => {
  const tape = new Tape(2);
  for (const start of [0, 3, 6]) tape.append(Uint8Array.from({ length: 6 }, (_, index) => 2 * start + index));
  const read = (position, count) => tape.read(position, count) && [...tape.read(position, count)];
  assert.equal(tape.length, 9);
  assert.deepEqual(read(1, 1), [2, 3]);
  assert.deepEqual(read(4, 100), [8, 9, 10, 11], "to the end of its piece");
  assert.equal(read(9, 1), null);
  tape.dropBefore(5);
  assert.equal(tape.first, 3, "a piece that is needed in part is kept");
  assert.equal(read(2, 1), null);
  tape.dropBefore(9);
  assert.deepEqual([tape.first, tape.length], [9, 9]);
});

test("hints are parameters of the address", () => {
  const addresses = [];
  const before = globalThis.WebSocket;
  globalThis.WebSocket = class extends EventTarget {
    constructor(address) {
      super();
      addresses.push(new URL(address));
    }
    close() {}
  };
  try {
    const send = (hints) => {
      const client = new SlipstreamClient({ url: SERVER, ...hints });
      client.send(new Int16Array(8)).catch(() => {});
      client.abort();
    };
    send({ keywords: ["Ngaio Marsh", "Poirot:2"], prompt: "Dear", languages: ["en", "fr"], delay: 1.5, alternatives: 3 });
    send({ keywords: [], prompt: "", languages: [], alternatives: 1 });
  } finally {
    globalThis.WebSocket = before;
  }
  const [all, none] = addresses.map(({ searchParams }) => searchParams);
  assert.deepEqual(all.getAll("keyword"), ["Ngaio Marsh", "Poirot:2"]);
  assert.deepEqual(all.getAll("language"), ["en", "fr"]);
  assert.deepEqual([all.get("prompt"), all.get("delay"), all.get("alternatives")], ["Dear", "1.5", "3"]);
  const hints = ["keyword", "language", "prompt", "delay", "alternatives"];
  assert.deepEqual(hints.map((name) => none.has(name)), [false, false, false, false, false]);
});

test("samples become bytes of the encoding", () => {
  const floats = Float32Array.of(0, 1, -1, 2);
  assert.deepEqual([...toInt16(floats)], [0, 32767, -32767, 32767]);
  assert.deepEqual([...new Int16Array(encode(floats, "pcm_s16le").buffer)], [0, 32767, -32767, 32767]);
  assert.deepEqual([...new Float32Array(encode(Int16Array.of(0, -16384), "pcm_f32le").buffer)], [0, -0.5]);
  assert.deepEqual([...encode(Int16Array.of(1, 2, 3).subarray(1, 2), "pcm_s16le")], [2, 0], "of a part of a buffer");
  assert.deepEqual([...encode(Uint8Array.of(7, 8), "mulaw")], [7, 8]);
  assert.throws(() => encode(floats, "mulaw"), { message: "mulaw: expected encoded bytes (Uint8Array), got a Float32Array" });
  assert.throws(() => encode(Float32Array.of(0, NaN), "pcm_f32le"), { message: "sample 1 is NaN: expected finite numbers" });
  assert.throws(() => encode([0, 1], "pcm_s16le"), /expected a Float32Array, an Int16Array/);
});

test("every end of a stream has a message, and whether to try again", () => {
  for (const code of [1000, 1001, 1005, 1006, 1011, 1012, 1013, 4408, 4413]) assert.ok(errorOfClose(code).retry, code);
  for (const code of [1007, 1009, 1008, 4999]) assert.ok(!errorOfClose(code).retry, code);
  assert.equal(errorOfClose(1011).tries, 3);
  assert.equal(errorOfClose(1013, "all 8 slots are in use").message, "the server is full: all 8 slots are in use (close code 1013)");
});

test("why a stream did not open", () => {
  const error = (status, hasKey = false) => errorOfStatus(status, new URL("http://asr.example.org/"), hasKey);
  assert.equal(error(401).message, "asr.example.org needs an API key");
  assert.equal(error(401, true).message, "asr.example.org did not accept the API key");
  assert.deepEqual([0, 503, 200, 429].map((status) => error(status).retry), [true, true, true, true]);
  assert.deepEqual([401, 403, 404, 421].map((status) => error(status).retry), [false, false, false, false]);
});

test("a server is gone if it is silent although it has text to send, but not while the stream is queued", async (context) => {
  const before = [globalThis.WebSocket, performance.now];
  context.mock.timers.enable({ apis: ["setInterval"] });
  let seconds = 0;
  let socket;
  performance.now = () => 1000 * seconds;
  globalThis.WebSocket = class {
    constructor() {
      socket = this;
    }
    close() {}
  };
  try {
    const link = { begin() {}, take() {}, next: () => null, changed: () => new Promise(() => {}), isOwed: () => true };
    let end = null;
    const conversation = converse(new URL(SERVER), { ...link, signal: new AbortController().signal });
    void conversation.then((how) => (end = how));
    const receive = (message) => socket.onmessage({ data: JSON.stringify(message) });
    const wait = (count) => {
      seconds += count;
      context.mock.timers.tick(1000);
      return new Promise((resolve) => setImmediate(resolve));
    };
    socket.onopen();
    receive({ type: "queued", position: 1 });
    await wait(60);
    assert.equal(end, null);
    receive({ type: "ready" });
    await wait(14);
    assert.equal(end, null);
    await wait(2);
    assert.deepEqual(end, { opened: true, code: 1006, reason: "the server does not respond" });
  } finally {
    [globalThis.WebSocket, performance.now] = before;
  }
});

test("invalid options are named", () => {
  const options = (more) => () => new SlipstreamClient({ url: SERVER, ...more });
  assert.throws(options({ url: "asr.example.org" }), { message: /^url "asr.example.org": expected an address such as/ });
  assert.throws(options({ encoding: "mp3" }), { message: /^encoding "mp3": expected one of pcm_s16le, / });
  assert.throws(options({ sampleRate: 44100.5 }), { message: "sampleRate 44100.5: expected a whole number from 4000 to 768000" });
  assert.throws(options({ channels: 9 }), { message: "channels 9: expected a whole number from 1 to 8" });
  assert.throws(options({ keepSeconds: 1 }), { message: "keepSeconds 1: expected at least 10" });
  assert.throws(() => new Recorder(), { message: "Recorder needs a browser with AudioContext" });
});

test("audio must be whole frames, and nothing follows the end", async () => {
  const client = new SlipstreamClient({ url: SERVER, channels: 2, retries: 0 });
  assert.throws(() => client.send(Int16Array.of(1)), { message: "2 bytes: expected whole frames of 4 bytes" });
  const closed = client.close();
  assert.throws(() => client.send(Int16Array.of(1, 2)), /the stream was closed/);
  assert.throws(() => client.flush(), /the stream was closed/);
  await assert.rejects(closed, { name: "SlipstreamError", status: 0, message: /^127\.0\.0\.1:1 cannot be reached/ });
});

test("a server that cannot be reached fails every call that waits", async () => {
  const client = new SlipstreamClient({ url: SERVER, retries: 1 });
  const events = [];
  client.on("reconnecting", ({ error, seconds }) => events.push([error.status, seconds < 1]));
  const iterating = (async () => {
    for await (const _ of client);
  })();
  const waiting = [iterating, client.flush(), client.send(new Int16Array(240_000)), client.close()];
  for (const result of await Promise.allSettled(waiting)) assert.match(String(result.reason), /cannot be reached/);
  assert.deepEqual(events, [[0, true]]);
  await assert.rejects(serverInfo({ url: SERVER }), { status: 0 });
});
