/**
 * Writes the JSON Schemas of settings from the tables that they are read by: schemas/train.schema.json (lib/train/config), serve.schema.json
 * of `dlfs serve --config` and served-model.schema.json of a served model's config.json (lib/service):
 *
 *   bun run scripts/generate-schemas.ts
 */
import { fileURLToPath } from "node:url";
import { modelConfigSchema, serviceConfigSchema } from "../lib/service";
import { trainSchema } from "../lib/train";

const root = fileURLToPath(new URL("..", import.meta.url));
const schemas = { train: trainSchema(), serve: serviceConfigSchema, "served-model": modelConfigSchema };
for (const [name, schema] of Object.entries(schemas)) {
  const path = `${root}schemas/${name}.schema.json`;
  await Bun.write(path, `${JSON.stringify(schema, null, 2)}\n`);
  const command = [process.execPath, "node_modules/.bin/biome", "format", "--write", path];
  const format = Bun.spawnSync(command, { cwd: root });
  if (!format.success) throw new Error(format.stderr.toString());
  console.log(`wrote ${path}`);
}
