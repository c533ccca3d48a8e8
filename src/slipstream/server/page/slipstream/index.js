// Built by "npm run build" from packages/js/src/index.ts: edit that file. f5c2b3f5ab80f51f5d483d4868484a0e22e135bd98372be1b14d5207c70af831
export { SlipstreamClient, serverInfo } from "./client.js";
export { SlipstreamError } from "./errors.js";
export { Recorder } from "./recorder.js";
