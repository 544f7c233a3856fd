import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dir, "../..");
const generator = join(root, "scripts/generate-flatbuffers.sh");

test("lib/formats/generated follows from schemas/", () => {
  const { FLATC } = process.env;
  const version =
    Bun.which(FLATC ?? "flatc") &&
    Bun.spawnSync([FLATC ?? "flatc", "--version"])
      .stdout.toString()
      .trim();
  const wanted = /^wanted=(.*)$/m.exec(readFileSync(generator, "utf8"))![1]!;
  if (version === `flatc version ${wanted}`) {
    const check = Bun.spawnSync(["bash", generator, "--check"]);
    expect(check.stdout.toString() + check.stderr.toString()).toBe("");
    expect(check.exitCode).toBe(0);
  }
  // Holds where flatc is not installed too: the output was made from these very schemas.
  const recorded = readFileSync(join(root, "lib/formats/generated/SCHEMAS.sha256"), "utf8");
  const schemas = readdirSync(join(root, "schemas")).filter((name) => name.endsWith(".fbs"));
  const actual = schemas.sort().map((name) => {
    const hash = new Bun.CryptoHasher("sha256").update(readFileSync(join(root, "schemas", name))).digest("hex");
    return `${hash}  schemas/${name}\n`;
  });
  expect(actual.join("")).toBe(recorded);
});
