// Bundles the page's program, with a digest of its sources in the first line for the test that looks
// whether they still belong together.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { build } from "esbuild";

const digest = createHash("sha256");
const sources = readdirSync(".").filter((name) => name.endsWith(".js")).sort();
for (const name of sources) digest.update(readFileSync(name));
await build({
  entryPoints: ["main.js"],
  outfile: "../assets/explorer.js",
  bundle: true,
  minify: true,
  format: "iife",
  target: ["es2020"],
  charset: "ascii",
  banner: { js: `/* pyrovae explorer, MIT; sources ${digest.digest("hex")} */` },
});
