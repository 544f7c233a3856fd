/**
 * Writes schemas/train.schema.json, the JSON Schema of a training's settings, from the table in
 * lib/train/config/train-settings.ts:
 *
 *   bun run scripts/generate-train-schema.ts
 */
import { fileURLToPath } from "node:url";
import { trainSchema } from "../lib/train";

const path = fileURLToPath(new URL("../schemas/train.schema.json", import.meta.url));
await Bun.write(path, `${JSON.stringify(trainSchema(), null, 2)}\n`);
const format = Bun.spawnSync([process.execPath, "node_modules/.bin/biome", "format", "--write", path], {
  cwd: fileURLToPath(new URL("..", import.meta.url)),
});
if (!format.success) throw new Error(format.stderr.toString());
console.log(`wrote ${path}`);
