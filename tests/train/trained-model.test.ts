/** Models made again from checkpoints: equal weights, and errors that name the file and what it lacks. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Normalize, Resize } from "../../lib/data";
import type { ModelConfig } from "../../lib/models";
import { DlfsError } from "../../lib/native";
import { loadTrainedModel } from "../../lib/train";
import { testDevice } from "../support/device";
import { saveTrained } from "../support/trained-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-trained-"));
afterAll(() => rmSync(folder, { recursive: true }));

const modelConfig: ModelConfig = { name: "compact", classes: 2, width: 4, headConvs: 1 };
const config = {
  model: modelConfig,
  classes: ["cat", "dog"],
  size: [64, 96],
  preprocessing: [new Resize().toJSON(), new Normalize().toJSON()],
};

const save = (path: string, seed: number, runConfig: unknown, iteration?: number) =>
  saveTrained(path, modelConfig, seed, runConfig, iteration);

describe("loadTrainedModel", () => {
  test("names the file where it does not understand what is done to images", async () => {
    const cases: [unknown[], string][] = [
      [[{ name: "blur" }], 'config.preprocessing[0]: unknown operation "blur"'],
      [[{ name: "normalize", mean: {} }], "config.preprocessing: "],
    ];
    for (const [preprocessing, message] of cases) {
      const path = join(folder, "unknown.dlck");
      await save(path, 3, { ...config, preprocessing });
      const error = await loadTrainedModel(path, testDevice()).catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(DlfsError);
      expect((error as Error).message).toStartWith(`${path}: ${message}`);
    }
  });

  test("gives the weights of a checkpoint, in inference mode, with what the run says about classes and input", async () => {
    const path = join(folder, "a.dlck");
    const values = await save(path, 3, config);
    using trained = await loadTrainedModel(path, testDevice());
    expect(trained).toMatchObject({ path, iteration: 7, config });
    expect(trained.model.training).toBe(false);
    expect(trained.preprocessing).toEqual([new Resize(), new Normalize()]);
    for (const [name, tensor] of trained.model.stateDict()) expect([...tensor.read()]).toEqual(values.get(name)!);
  });

  test("takes the newest checkpoint of a run's folder", async () => {
    const run = join(folder, "run-1");
    mkdirSync(join(run, "checkpoints"), { recursive: true });
    await save(join(run, "checkpoints", "checkpoint-00000005.dlck"), 1, config, 5);
    const values = await save(join(run, "checkpoints", "checkpoint-00000010.dlck"), 2, config, 10);
    using trained = await loadTrainedModel(run, testDevice());
    expect(trained.iteration).toBe(10);
    const [name, tensor] = [...trained.model.stateDict()][0]!;
    expect([...tensor.read()]).toEqual(values.get(name)!);
  });

  test("refuses what is missing, of another model or without a configuration, naming the file", async () => {
    const load = (path: string) => loadTrainedModel(path, testDevice());
    await expect(load(join(folder, "none"))).rejects.toThrow(`${join(folder, "none")}: it does not exist`);
    mkdirSync(join(folder, "empty"));
    await expect(load(join(folder, "empty"))).rejects.toThrow(`${join(folder, "empty")}: it has no checkpoint`);
    const cases: [string, unknown, string][] = [
      ["text", "a text", "config.classes: expected the names of the classes"],
      ["names", { ...config, classes: ["cat"] }, "config.classes: 1 names, the model has 2 classes"],
      ["size", { ...config, size: [64] }, "config.size: expected height and width"],
      ["steps", { ...config, preprocessing: undefined }, "config.preprocessing: expected a list of operations"],
      ["field", { ...config, model: { ...modelConfig, width: 0 } }, "config.model: width: expected a whole number"],
      [
        "other",
        { ...config, model: { ...modelConfig, width: 8 } },
        "model.stem.conv.weight: expected f32 (8, 3, 3, 3), got f32 (4, 3, 3, 3)",
      ],
    ];
    for (const [name, wrong, message] of cases) {
      const path = join(folder, `${name}.dlck`);
      await save(path, 0, wrong);
      await expect(load(path)).rejects.toThrow(message);
      await expect(load(path)).rejects.toThrow(path);
    }
  });
});
