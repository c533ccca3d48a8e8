// Connects the controls to the sources, the transcription and the view.

import { Problem, problemOfServer } from "./problems.js";
import { serverInfo, SlipstreamClient, SlipstreamError } from "./slipstream/index.js";
import { openFile, openMicrophone } from "./sources.js";
import { srt, vtt } from "./subtitles.js";
import { clock, Transcript } from "./transcript.js";
import * as view from "./view.js";

const SERVER = new URL(".", document.baseURI);
const MUTED_MS = 4000;
const MUTED_PEAK = 0.001;
const MUTED_TEXT = "No sound comes from the microphone. Check that it is connected and not muted.";
const OVERDUE_MS = 1500; // after Stop the last words normally take less
const RELOAD_SECONDS = 5;

const $ = (id) => document.getElementById(id);

let transcript = new Transcript();
let isRecorded = false; // the transcript is of the microphone, so that it cannot be made again
let saved = true;
let job = null; // { abort, source, isFile, phase, origin, client }
let again = null; // what to start once there is a key

// --------------------------------------------------------------------------------------------------------------- jobs

async function start(open, isFile) {
  if (job) return view.showNotice("Stop the current transcription first, then open the file.", "info");
  if (isFile && !(await mayReplace())) return;
  const mine = (job = { abort: new AbortController(), source: null, isFile, origin: null });
  view.showNotice("");
  setPhase("opening");
  view.say(isFile ? "Reading the file …" : "Waiting for the microphone …");
  const opening = open();
  try {
    mine.source = await Promise.race([opening, aborted(mine.abort.signal)]);
    if (!mine.source) return;
    setPhase("waiting");
    view.say("Connecting …");
    await transcribe(mine);
    view.say(summary(mine));
  } catch (error) {
    if (!mine.abort.signal.aborted) fail(error, () => start(open, isFile));
  } finally {
    opening.then((source) => source.stop(), () => {});
    if (mine.abort.signal.aborted) view.say(mine.origin === null ? "" : "Stopped before the last words.");
    dropOpenWord();
    job = null;
    setPhase("idle");
  }
}

const valueOf = (id) => document.getElementById(id).value.trim();
const listOf = (id) => valueOf(id).split(",").map((word) => word.trim()).filter(Boolean);
const hints = () => ({
  keywords: listOf("keywords"),
  prompt: valueOf("prompt"),
  languages: listOf("languages"),
  alternatives: Number(valueOf("alternatives")) || 1,
});

const aborted = (signal) => new Promise((resolve) => signal.addEventListener("abort", () => resolve(null)));

async function transcribe(mine) {
  const { audio, sampleRate } = mine.source;
  const client = new SlipstreamClient({ url: SERVER, apiKey: storedKey(), sampleRate, retries: Infinity, ...hints() });
  mine.client = client;
  mine.abort.signal.addEventListener("abort", () => client.abort());
  const transcribed = client.transcribe(audio);
  await Promise.all([transcribed, follow(mine)]);
}

async function follow(mine) {
  for await (const event of mine.client) if (!mine.abort.signal.aborted) handle(event, mine);
}

function summary({ isFile, source }) {
  const count = transcript.words.length;
  if (!count) return "No speech was recognised.";
  const words = count === 1 ? "1 word" : `${count} words`;
  return isFile ? `${words} from ${source.name}` : `${words} in ${clock(transcript.duration)}`;
}

function fail(error, retry) {
  const problem = problemOf(error);
  view.say("");
  view.showReason(problem.detail);
  if (problem.key) askForKey(problem.message, retry);
  else view.showNotice(problem.message);
}

function problemOf(error) {
  if (error instanceof Problem) return error;
  if (error instanceof SlipstreamError) return problemOfServer(error, storedKey() !== "");
  return new Problem("The page failed. Reload it.", { detail: String(error) });
}

function setPhase(phase) {
  if (job) job.phase = phase;
  view.showPhase(phase, job?.isFile);
}

// Stop the source, then let the last words arrive. What has not begun is given up at once.
async function stop() {
  const mine = job;
  if (mine.phase === "finishing") return;
  if (mine.phase !== "live" && (mine.origin === null || mine.phase === "overdue")) return mine.abort.abort();
  setPhase("finishing");
  view.say("Finishing the last words …");
  view.showLevel(0);
  setTimeout(() => mine === job && setPhase("overdue"), OVERDUE_MS);
  await mine.source.stop();
}

const openMic = () => {
  let quietSince = performance.now();
  let isNoticed = false;
  return openMicrophone(
    (peak) => {
      if (job?.phase === "finishing") return;
      view.showLevel(peak);
      if (job) view.showClock(clock((job.origin ?? 0) + job.source?.duration || 0));
      if (peak > MUTED_PEAK) {
        quietSince = performance.now();
        if (isNoticed) view.showNotice("");
        isNoticed = false;
      } else if (!isNoticed && performance.now() - quietSince > MUTED_MS) {
        isNoticed = true;
        view.showNotice(MUTED_TEXT, "info");
      }
    },
    () => {
      view.showNotice("The microphone was disconnected.");
      if (job) stop();
    },
  );
};

// ------------------------------------------------------------------------------------------------------------- events

function handle(event, mine) {
  switch (event.type) {
    case "ready":
      $("delay").textContent = `${event.delay.toFixed(2)} s`;
      begin(mine);
      break;
    case "queued":
      if (mine.phase === "live") setPhase("waiting");
      view.say(`The server is full. You are number ${event.position} in the queue.`);
      break;
    case "reconnecting": {
      const { message, detail } = problemOf(event.error);
      if (mine.phase === "live") setPhase("waiting");
      dropOpenWord();
      view.showReason(detail);
      view.say(`${message} Trying again${event.seconds < 2 ? "" : ` in ${Math.round(event.seconds)} s`} …`);
      break;
    }
    case "lost":
      view.showNotice(`${Math.ceil(event.seconds)} s of speech were not transcribed: the connection was lost for too long.`);
      break;
    case "step":
      step(event, mine);
      break;
    case "partial":
    case "word":
      put(event, mine.origin);
      break;
    case "turn":
      transcript.endTurn();
      if (transcript.turns.at(-1)?.over) view.closeTurn(transcript.turns.at(-1));
      break;
    case "recovered":
      view.showNotice(`The model was restarted at ${clock(event.time)}. A few words may be missing.`, "info");
      break;
  }
}

// A stream is ready. The first of a job begins a transcript, or goes on with the one from the microphone.
function begin(mine) {
  if (mine.origin === null) {
    const goesOn = !mine.isFile && isRecorded;
    if (!goesOn) reset();
    isRecorded = !mine.isFile;
    mine.origin = Math.max(transcript.duration, transcript.words.at(-1)?.end ?? 0);
    endTurn();
  }
  if (mine.phase === "waiting") setPhase("live");
  view.say(mine.isFile ? `Transcribing ${mine.source.name}` : mine.phase === "live" ? "Listening" : "Finishing the last words …");
}

function step(event, mine) {
  transcript.duration = mine.origin + event.time;
  view.showStep(event, mine.client.sentDuration - event.time);
  if (mine.isFile) {
    const { duration } = mine.source;
    view.showProgress(Math.min(1, event.time / duration));
    view.showClock(`${clock(Math.min(event.time, duration))} / ${clock(duration)}`);
  }
}

function put({ text, start, end, confidence, language, alternatives }, origin) {
  const word = { text, start: origin + start, end, confidence, language, alternatives };
  if (end !== undefined) word.end += origin;
  view.drawWord(transcript, transcript.put(word));
  saved = false;
}

function dropOpenWord() {
  const word = transcript.dropOpen();
  if (word) view.eraseWord(word);
}

function endTurn() {
  transcript.endTurn();
  view.closeTurn(transcript.turns.at(-1));
}

function reset() {
  transcript = new Transcript();
  isRecorded = false;
  saved = true;
  view.clearTranscript();
}

// A recording cannot be made again: ask before its transcript goes. A file can be.
async function mayReplace() {
  if (saved || !isRecorded) return true;
  const dialog = $("replace");
  dialog.returnValue = "cancel";
  dialog.showModal();
  // `close` is queued: the event of an earlier answer can arrive after the dialog has opened again.
  await new Promise((resolve) => (dialog.onclose = () => dialog.open || resolve()));
  return dialog.returnValue === "replace";
}

// --------------------------------------------------------------------------------------------------------------- keys

const storedKey = () => sessionStorage.getItem("key") ?? "";

function askForKey(message, retry) {
  again = retry;
  $("key-label").textContent = message;
  $("key-form").hidden = false;
  $("key").focus();
  $("key").select();
}

$("key-form").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  $("key-form").hidden = true;
  view.showNotice("");
  again();
};

// Ask the server what it is, until it answers. It may want a key first.
async function greet() {
  try {
    const info = await serverInfo({ url: SERVER, apiKey: storedKey() });
    $("model").textContent = info.model;
    $("model").hidden = false;
    $("delay").textContent = `${info.delay.toFixed(2)} s`;
    if (!job) view.say("");
  } catch (error) {
    const problem = problemOf(error);
    if (problem.key) return askForKey(problem.message, greet);
    if (!error.retry) return fail(problem);
    if (!job) view.say(`${problem.message} Trying again …`);
    setTimeout(greet, RELOAD_SECONDS * 1000);
  }
}

// ----------------------------------------------------------------------------------------------------------- controls

$("primary").onclick = () => (job ? stop() : start(openMic, false));
$("open").onclick = $("choose").onclick = () => $("file").click();
$("file").onchange = () => {
  const [file] = $("file").files;
  if (file) start(() => openFile(file), true);
  $("file").value = "";
};
$("sample").onclick = () =>
  start(async () => {
    const response = await fetch("sample.mp3").catch(() => {
      throw problemOfServer({ status: 0, message: "no response" });
    });
    return openFile(new File([await response.blob()], "the sample"));
  }, true);

let overWindow = 0;
ondragenter = ({ dataTransfer }) => {
  if (dataTransfer.types.includes("Files")) document.body.classList.toggle("dropping", ++overWindow > 0);
};
ondragleave = () => document.body.classList.toggle("dropping", (overWindow = Math.max(0, overWindow - 1)) > 0);
ondragover = (event) => {
  if (event.dataTransfer.types.includes("Files")) event.preventDefault();
};
ondrop = (event) => {
  const [file] = event.dataTransfer.files;
  if (file) event.preventDefault();
  document.body.classList.toggle("dropping", (overWindow = 0) > 0);
  if (file) start(() => openFile(file), true);
};

$("copy").onclick = async () => {
  await navigator.clipboard.writeText(transcript.text);
  saved = !job;
  view.say("Copied");
};

const WRITERS = {
  txt: [(transcript) => transcript.text, "text/plain"],
  srt: [srt, "application/x-subrip"],
  vtt: [vtt, "text/vtt"],
};
$("formats").onclick = ({ target }) => {
  const format = target.closest("button")?.dataset.format;
  if (!format) return;
  const [write, type] = WRITERS[format];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(transcript)], { type }));
  link.download = `transcript.${format}`;
  link.click();
  URL.revokeObjectURL(link.href);
  saved = !job;
  $("formats").hidePopover();
};
$("formats").ontoggle = () => {
  const { bottom, right } = $("download").getBoundingClientRect();
  $("formats").style.setProperty("top", `${bottom + 6}px`);
  $("formats").style.setProperty("right", `${Math.max(8, innerWidth - right)}px`);
};

$("clear").onclick = async () => {
  if (!(await mayReplace())) return;
  reset();
  isRecorded = job !== null && !job.isFile;
};
$("dismiss").onclick = () => {
  view.showNotice("");
  $("primary").focus();
};
onbeforeunload = (event) => {
  if (job || (isRecorded && !saved)) event.preventDefault();
};

view.showPhase("idle");
greet();
