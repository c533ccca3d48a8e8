// Compile src to dist, and write the modules to the server's page, which loads them as they are.
//
//   node build.mjs           # what `npm run build` runs
//   node build.mjs --check   # compile, and fail if the page's modules differ

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";

const here = new URL("./", import.meta.url);
const page = new URL("../../src/slipstream/server/page/slipstream/", here);
const read = (file) => readFileSync(file, "utf8").replaceAll("\r\n", "\n");

rmSync(new URL("dist", here), { recursive: true, force: true });
const compiler = new URL("node_modules/typescript/bin/tsc", here);
execFileSync(process.execPath, [compiler.pathname, "--project", here.pathname], { stdio: "inherit" });

const modules = new Map();
for (const name of readdirSync(new URL("dist", here)).filter((name) => name.endsWith(".js"))) {
  const source = `packages/js/src/${name.replace(/js$/, "ts")}`;
  const body = read(new URL(`dist/${name}`, here));
  // Without Node, a test compares this hash. It covers both files, so that an edit of either is found.
  const hash = createHash("sha256").update(`${read(new URL(`../../${source}`, here))}\0${body}`).digest("hex");
  modules.set(name, `// Built by "npm run build" from ${source}: edit that file. ${hash}\n${body}`);
}

if (process.argv.includes("--check")) {
  const present = existsSync(page) ? readdirSync(page) : [];
  const stale = [...new Set([...modules.keys(), ...present])].filter(
    (name) => !present.includes(name) || read(new URL(name, page)) !== modules.get(name),
  );
  if (stale.length) {
    console.error(`differ from packages/js/src: ${stale.join(", ")}. Run "npm run build" in packages/js.`);
    process.exit(1);
  }
} else if (existsSync(new URL("../", page))) {
  rmSync(page, { recursive: true, force: true });
  mkdirSync(page);
  for (const [name, text] of modules) writeFileSync(new URL(name, page), text);
}
