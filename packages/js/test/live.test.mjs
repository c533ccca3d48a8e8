// A client with live servers, which tests/packages/test_js.py starts and describes in SLIPSTREAM_TEST.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import net from "node:net";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

const { SlipstreamClient, serverInfo } = await import(
  new URL("../../../src/slipstream/server/page/slipstream/index.js", import.meta.url)
);
const { servers, audio, words } = JSON.parse(process.env.SLIPSTREAM_TEST ?? "{}");
const skip = servers ? false : "run by tests/packages/test_js.py";
const floats = skip ? new Float32Array() : new Float32Array(new Uint8Array(readFileSync(audio)).buffer);
const RATE = 24_000;

function* pieces(samples = floats, least = 100, most = 5000) {
  for (let start = 0, size; start < samples.length; start += size) {
    size = Math.round(least + Math.random() * (most - least));
    yield samples.subarray(start, start + size);
  }
}

// Passes bytes to a server until it is cut.
async function proxyOf(url) {
  const { hostname, port } = new URL(url);
  const sockets = new Set();
  const proxy = net.createServer((near) => {
    const far = net.connect(port, hostname);
    for (const [from, to] of [[near, far], [far, near]]) {
      sockets.add(from);
      from.on("error", () => {}).on("close", () => (sockets.delete(from), to.destroy())).pipe(to);
    }
  });
  await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  const cut = () => sockets.forEach((socket) => socket.destroy());
  return { url: `http://127.0.0.1:${proxy.address().port}`, cut, close: () => (cut(), proxy.close()) };
}

const collect = async (client) => {
  const events = [];
  for await (const event of client) events.push(event);
  return events;
};

for (const encoding of ["pcm_s16le", "pcm_f32le"]) {
  test(`the words are those of the recording alone, in pieces of random length (${encoding})`, { skip }, async () => {
    const client = new SlipstreamClient({ url: servers.open, encoding });
    const collected = collect(client);
    const transcript = await client.transcribe(pieces());
    const events = await collected;
    const plain = ({ text, start, end }) => ({ text, start, end });
    assert.deepEqual(transcript.words.map(plain), words);
    assert.equal(transcript.text, words.map(({ text }) => text).join(" "));
    assert.ok(Math.abs(transcript.duration - floats.length / RATE) < 1e-6);
    assert.deepEqual([transcript.model, transcript.delay], ["script", 0.48]);
    assert.equal(events[0].type, "ready");
    assert.deepEqual(events.filter(({ type }) => type === "word").map(plain), words);
    const types = new Set(events.map(({ type }) => type));
    for (const type of ["step", "partial", "end_of_turn", "turn"]) assert.ok(types.has(type), type);
    assert.equal(transcript.turns.length, events.filter(({ type }) => type === "turn").length);
  });
}

test("a flush resolves after the words of the audio before it, and the stream continues", { skip }, async () => {
  const client = new SlipstreamClient({ url: servers.open });
  const texts = [];
  client.on("word", ({ text }) => texts.push(text));
  const half = words[Math.floor(words.length / 2)];
  const cut = Math.round(half.end * RATE);
  await client.send(floats.subarray(0, cut));
  await client.flush();
  assert.deepEqual(texts, words.filter(({ start }) => start < half.end).map(({ text }) => text));
  await client.send(floats.subarray(cut));
  await Promise.all([client.flush(), client.flush()]);
  assert.equal((await client.close()).text, words.map(({ text }) => text).join(" "));
});

for (const [name, how] of [
  ["slow", "the audio that was not final is sent again"],
  ["holding", "the server continues exactly"],
]) {
  test(`after a lost connection, ${how}`, { skip }, () => continueAfterLosses(name));
}

async function continueAfterLosses(name) {
  const proxy = await proxyOf(servers[name]);
  const client = new SlipstreamClient({ url: proxy.url });
  let [count, cuts] = [0, 0];
  client.on("word", () => {
    if (++count % 10 === 0 && cuts++ < 3) proxy.cut();
  });
  const [errors, flushes, resumed] = [[], [], []];
  client.on("ready", (ready) => resumed.push(ready.resumed ?? false));
  client.on("reconnecting", ({ error }) => errors.push(error.message));
  const flushing = (async () => {
    for (const piece of pieces()) {
      await client.send(piece);
      if (Math.random() < 0.2) flushes.push(client.flush());
    }
  })();
  await flushing;
  const transcript = await client.close();
  await Promise.all(flushes);
  proxy.close();
  assert.equal(transcript.text, words.map(({ text }) => text).join(" "));
  assert.equal(errors.length, 3);
  assert.match(errors[0], /the connection was lost/);
  const held = name === "holding";
  assert.deepEqual(resumed, [false, held, held, held]);
  const most = held ? 1e-3 : 0.17;
  transcript.words.forEach(({ start }, index) => assert.ok(Math.abs(start - words[index].start) < most, `word ${index}`));
}

test("a source that can wait is read no faster than the server takes it", { skip }, async () => {
  const client = new SlipstreamClient({ url: servers.slow });
  let ahead = 0;
  function* watched() {
    for (const piece of pieces()) {
      ahead = Math.max(ahead, client.duration - client.sentDuration);
      yield piece;
    }
  }
  await client.transcribe(watched());
  assert.ok(ahead < 1.3, `${ahead} s`);
});

test("a live source that waits too long loses its oldest audio, and times stay right", { skip }, async () => {
  const first = new SlipstreamClient({ url: servers.full });
  await first.send(new Int16Array(RATE));
  await first.flush();
  const second = new SlipstreamClient({ url: servers.full, keepSeconds: 10 });
  const queued = new Promise((resolve) => second.on("queued", resolve));
  const collected = collect(second);
  async function* live() {
    assert.equal((await queued).position, 1);
    yield* pieces(floats, 100, 2000);
    void first.close();
  }
  const transcript = await second.transcribe(Object.assign(live(), { live: true }));
  const lost = (await collected).find(({ type }) => type === "lost").seconds;
  const total = floats.length / RATE;
  assert.ok(lost > total - 11 && lost <= total - 9.9, `${lost} s`);
  const kept = words.filter(({ start }) => start > lost + 0.5);
  assert.deepEqual(transcript.words.slice(-kept.length).map(({ text }) => text), kept.map(({ text }) => text));
  assert.ok(Math.abs(transcript.words.at(-1).start - words.at(-1).start) < 0.17);
  assert.ok(Math.abs(transcript.duration - total) < 1e-6);
});

test("a stream that the server ended for being idle continues with the next audio", { skip }, async () => {
  const client = new SlipstreamClient({ url: servers.idle });
  let opened = 0;
  client.on("ready", () => opened++);
  const pause = words[9].end;
  const cut = Math.round(pause * RATE);
  await client.send(floats.subarray(0, cut));
  await sleep(1500);
  assert.equal(opened, 1, "no connection without audio");
  await client.send(floats.subarray(cut));
  const transcript = await client.close();
  assert.equal(opened, 2);
  assert.equal(transcript.text, words.map(({ text }) => text).join(" "));
});

test("a key", { skip }, async () => {
  const client = (options) => new SlipstreamClient({ url: servers.keys, ...options });
  await assert.rejects(client().close(), { status: 401, message: / needs an API key$/ });
  await assert.rejects(client({ apiKey: "wrong" }).close(), { status: 401, message: / did not accept the API key$/ });
  assert.equal((await client({ apiKey: "secret" }).close()).text, "");
  assert.deepEqual(await serverInfo({ url: servers.keys, apiKey: "secret" }), {
    model: "script",
    delay: 0.48,
    models: ["script"],
    needs_key: true,
  });
});

test("a model of the server", { skip }, async () => {
  const client = (model) => new SlipstreamClient({ url: servers.open, model });
  assert.equal((await client("script").close()).model, "script");
  const message = /^127\.0\.0\.1:\d+ has no model "large": expected one of script$/;
  await assert.rejects(client("large").close(), { status: 400, retry: false, message });
});

test("an abort rejects what is waited for, and stops the source", { skip }, async () => {
  const client = new SlipstreamClient({ url: servers.open });
  client.on("ready", () => client.abort());
  let stopped = false;
  async function* endless() {
    try {
      for (;;) yield (await sleep(20), new Int16Array(480));
    } finally {
      stopped = true;
    }
  }
  await assert.rejects(client.transcribe(endless()), { message: "the stream was aborted" });
  await sleep(100);
  assert.ok(stopped);
  await assert.rejects(client.flush(), { message: "the stream was aborted" });
});

test("audio that the server refuses ends the stream with its reason", { skip }, async () => {
  const client = new SlipstreamClient({ url: servers.open, encoding: "pcm_f32le" });
  await client.send(Float32Array.of(1000));
  await assert.rejects(client.close(), { code: 1007, retry: false, message: /^the server refused the stream: audio must be within/ });
});
