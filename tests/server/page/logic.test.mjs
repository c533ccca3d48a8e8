// The parts of the page that need no browser. Run by tests/server/test_page_logic.py with `node --test`.

import assert from "node:assert/strict";
import { test } from "node:test";

const page = new URL("../../../src/slipstream/server/page/", import.meta.url);
const { Transcript, clock } = await import(new URL("transcript.js", page));
const { srt, vtt } = await import(new URL("subtitles.js", page));
const { problemOfMicrophone, problemOfServer } = await import(new URL("problems.js", page));

function transcriptOf(...turns) {
  const transcript = new Transcript();
  for (const words of turns) {
    for (const [text, start, end] of words) transcript.put({ text, start, end, confidence: 0.9 });
    transcript.endTurn();
  }
  transcript.duration = turns.at(-1).at(-1)[2];
  return transcript;
}

test("partial words of one start replace each other until the final word", () => {
  const transcript = new Transcript();
  const first = transcript.put({ text: "hel", start: 1 });
  assert.equal(transcript.put({ text: "hello", start: 1 }), first);
  assert.equal(transcript.put({ text: "hello", start: 1, end: 1.5, confidence: 0.9 }), first);
  const second = transcript.put({ text: "there", start: 1 }); // starts with the same frame, and is another word
  assert.notEqual(second, first);
  assert.deepEqual(transcript.words.map((word) => word.text), ["hello", "there"]);
});

test("a turn ends after its last word, never inside one", () => {
  const transcript = new Transcript();
  transcript.put({ text: "yes", start: 1 });
  transcript.endTurn();
  transcript.put({ text: "yes.", start: 1, end: 1.4, confidence: 1 });
  transcript.endTurn();
  transcript.put({ text: "No.", start: 3, end: 3.4, confidence: 1 });
  assert.equal(transcript.text, "yes.\nNo.\n");
});

test("the partial word of a lost connection is dropped, with its turn if it is alone", () => {
  const transcript = transcriptOf([["one", 0, 0.5]]);
  const open = transcript.put({ text: "tw", start: 2 });
  assert.equal(transcript.dropOpen(), open);
  assert.equal(transcript.dropOpen(), null);
  assert.equal(transcript.text, "one\n");
});

test("subtitles in both formats", () => {
  const transcript = transcriptOf([["a", 0, 0.24], ["<b>", 0.4, 0.64]], [["c", 3661.5, 3662.75]]);
  assert.equal(
    srt(transcript),
    "1\n00:00:00,000 --> 00:00:01,000\na <b>\n\n2\n01:01:01,500 --> 01:01:02,750\nc\n",
  );
  assert.equal(
    vtt(transcript),
    "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na &lt;b&gt;\n\n01:01:01.500 --> 01:01:02.750\nc\n",
  );
});

test("a cue has two balanced lines of at most 42 characters", () => {
  const words = Array.from({ length: 30 }, (_, index) => ["captions", index * 0.2, index * 0.2 + 0.15]);
  const cues = srt(transcriptOf(words)).split("\n\n").map((cue) => cue.split("\n").filter(Boolean).slice(2));
  assert.deepEqual(cues.map((lines) => lines.map((line) => line.split(" ").length)), [[4, 4], [4, 4], [4, 4], [3, 3]]);
});

test("wide letters count as two columns", () => {
  const words = Array.from({ length: 6 }, (_, index) => ["十二個字母十二個字母十二", index, index + 0.9]);
  const cues = srt(transcriptOf(words)).split("\n\n").map((cue) => cue.split("\n").filter(Boolean).slice(2));
  assert.deepEqual(cues.map((lines) => lines.length), [2, 2, 2]);
});

test("a cue ends at a pause, and before it lasts longer than 7 s", () => {
  const words = [["a", 0, 0.4], ["b", 1.5, 1.8], ["c", 2.7, 8.3], ["d", 8.5, 8.7]];
  const texts = srt(transcriptOf(words)).split("\n\n").map((cue) => cue.split("\n")[2]);
  assert.deepEqual(texts, ["a", "b c", "d"]);
});

test("clock", () => {
  assert.deepEqual([0, 9.99, 75.04, 3600].map((seconds) => clock(seconds)), ["0:00", "0:09", "1:15", "1:00:00"]);
  assert.deepEqual([clock(0.08, 2), clock(75.04, 2), clock(59.99, 1), clock(3725.5, 1)],
    ["0:00.08", "1:15.04", "0:59.9", "1:02:05.5"]);
});

test("a failed stream has a plain message, and the technical one as its detail", () => {
  const problem = problemOfServer({ code: 1007, message: "Audio after the end of the stream (close code 1007)" });
  assert.doesNotMatch(problem.message, /1007|Audio/);
  assert.equal(problem.detail, "Audio after the end of the stream (close code 1007)");
  assert.equal(problemOfServer({ code: 1006, message: "" }).message, "The connection was lost.");
  assert.equal(problemOfServer({ code: 1013, message: "" }).message, "The server is full.");
});

test("why a stream did not open", () => {
  const problem = (status, hasKey) => problemOfServer({ status, message: "" }, hasKey);
  assert.equal(problem(401, false).message, "This server needs a key.");
  assert.equal(problem(401, true).message, "The server did not accept this key.");
  assert.ok(problem(401, true).key);
  assert.match(problem(0, false).message, /cannot be reached/);
  assert.match(problem(403, false).message, /does not accept this page/);
  assert.match(problem(503, false).message, /not taking new transcriptions/);
});

test("why the microphone did not open", () => {
  const message = (name) => problemOfMicrophone({ message: "", cause: { name } }).message;
  assert.match(message("NotAllowedError"), /blocked/);
  assert.match(message("NotFoundError"), /No microphone was found/);
  assert.match(message("OverconstrainedError"), /could not be opened/);
  assert.match(problemOfMicrophone({ message: "" }).message, /only over HTTPS or on localhost/);
});
