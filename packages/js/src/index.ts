export { SlipstreamClient, serverInfo } from "./client.js";
export type { AudioSource, ClientOptions, ServerInfo } from "./client.js";
export { SlipstreamError } from "./errors.js";
export type {
  ClientEvent,
  ClientEvents,
  EndOfTurn,
  Flushed,
  Lost,
  Partial,
  Queued,
  Ready,
  Reconnecting,
  Recovered,
  Step,
  Transcript,
  Turn,
  Word,
} from "./events.js";
export type { Encoding, Samples } from "./samples.js";
export { Recorder } from "./recorder.js";
export type { RecorderEvents, RecorderOptions } from "./recorder.js";
