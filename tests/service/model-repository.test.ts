/** Models and their versions: found in files and folders, loaded, replaced and unloaded while others serve. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ErrorCode } from "../../lib/native";
import type { ModelRepository } from "../../lib/service";
import { Deed, errorOf, eventually, image, openFakes, writeFake } from "./fake";

const folder = mkdtempSync(join(tmpdir(), "dlfs-repository-"));
afterAll(() => rmSync(folder, { recursive: true }));
let root: string;
let count = 0;
beforeEach(() => {
  root = join(folder, `${count++}`);
  mkdirSync(root);
});

function addVersion(model: string, version: number, fake = {}): void {
  mkdirSync(join(root, model, `${version}`), { recursive: true });
  writeFake(join(root, model, `${version}`, "model.dlfs"), fake);
}

const configure = (model: string, config: unknown) =>
  writeFileSync(join(root, model, "config.json"), typeof config === "string" ? config : JSON.stringify(config));

const states = (repository: ModelRepository) =>
  Object.fromEntries(repository.models().map(({ name, version, state }) => [`${name}/${version}`, state]));

const versionOf = async (repository: ModelRepository, name = "a", version?: string) =>
  (await repository.infer(name, version, { images: [image(1)] })).version;

describe("models are found", () => {
  test("in files, by their names or the ones that are given, and in folders of versions", async () => {
    addVersion("repo/b", 2);
    addVersion("repo/b", 10);
    addVersion("repo/c", 1);
    writeFake(join(root, "one.dlfs"));
    mkdirSync(join(root, "run", "checkpoints"), { recursive: true });
    const models = [join(root, "one.dlfs"), `two=${root}/one.dlfs`, `${root}/repo`, `${root}/run`, `d=${root}/repo/c`];
    await using repository = await openFakes({ models });
    expect(repository.models().map(({ name, version }) => `${name}/${version}`)).toEqual([
      ...["b/2", "b/10", "c/1", "d/1", "one/1", "run/1", "two/1"],
    ]);
    await using single = await openFakes({ models: [join(root, "repo", "b")] });
    expect(single.names).toEqual(["b"]);
    expect(repository.describe("b")).toMatchObject({ version: "10", state: "unloaded" });
    expect(() => repository.describe("b", "3")).toThrow('there is no version "3" of model "b"');
    expect(() => repository.describe("x")).toThrow('there is no model "x"');
    expect((await errorOf(repository.load("x"))).status).toBe(404);
    expect((await errorOf(repository.unload("x"))).status).toBe(404);
    expect((await errorOf(repository.infer("b", "2", { images: [image(1)] }))).message).toBe(
      'model "b" version "2" is not ready: it is not loaded',
    );
  });

  test("what cannot be used is named, with the file", async () => {
    const open = (...models: string[]) => openFakes({ models });
    await expect(open(join(root, "none.dlfs"))).rejects.toThrow("none.dlfs: it does not exist: expected a model file");
    writeFake(join(root, "a b.dlfs"));
    await expect(open(join(root, "a b.dlfs"))).rejects.toThrow(`"a b" cannot be a model's name`);
    writeFake(join(root, "a.dlfs"));
    await expect(open(`${root}/a.dlfs`, `${root}/a.dlfs`)).rejects.toThrow('models: two are named "a"');
    addVersion("repo/m", 1);
    configure("repo/m", { maxBatch: "many" });
    await expect(open(`${root}/repo`)).rejects.toThrow(
      `${root}/repo/m/config.json: config.maxBatch: expected an integer from 1 to 1024, got "many"`,
    );
    configure("repo/m", "{");
    await expect(open(`${root}/repo`)).rejects.toThrow(`${root}/repo/m/config.json: it cannot be read`);
    configure("repo/m", {});
    writeFileSync(join(root, "repo/m/config.yaml"), "maxBatch: 3");
    await expect(open(`${root}/repo`)).rejects.toThrow("expected one configuration, got config.json, config.yaml");
    rmSync(join(root, "repo/m/config.yaml"));
    mkdirSync(join(root, "repo/not a model"));
    await expect(open(`${root}/repo`)).rejects.toThrow(`"not a model" cannot be a model's name`);
  });
});

describe("versions", () => {
  test("that the policy chooses are loaded; a request without one gets the newest, or the default", async () => {
    for (const version of [1, 2, 3]) addVersion("a", version);
    configure("a", { versionPolicy: { latest: 2 } });
    await using repository = await openFakes({ models: [root] });
    await repository.loadAll();
    expect(states(repository)).toEqual({ "a/1": "unloaded", "a/2": "ready", "a/3": "ready" });
    expect(await versionOf(repository)).toBe("3");
    expect(await versionOf(repository, "a", "2")).toBe("2");
    configure("a", { versionPolicy: { specific: [1, 2] }, defaultVersion: 1 });
    await repository.load("a");
    expect(states(repository)).toEqual({ "a/1": "ready", "a/2": "ready", "a/3": "unloaded" });
    expect(await versionOf(repository)).toBe("1");
    configure("a", { versionPolicy: { specific: [7] } });
    expect(await errorOf(repository.load("a"))).toMatchObject({
      ...{ status: 400, message: expect.stringContaining("there is no version 7 among 1, 2, 3") },
    });
    expect(await versionOf(repository)).toBe("1");
    const statistics = repository.statistics().map(({ version, success }) => [version, success]);
    expect(statistics).toEqual([
      ["1", 2],
      ["2", 1],
      ["3", 1],
    ]);
  });

  test("that are new are loaded while the old one serves, and take its place when they are ready", async () => {
    addVersion("a", 1, { answerMs: 30 });
    await using repository = await openFakes({ models: [root] });
    await repository.loadAll();
    addVersion("a", 2, { loadMs: 50 });
    const loading = repository.load("a");
    await eventually(() => states(repository)["a/2"] === "loading");
    expect(await versionOf(repository)).toBe("1");
    const last = versionOf(repository, "a", "1");
    await loading;
    expect(await last).toBe("1");
    expect(await versionOf(repository)).toBe("2");
    expect(states(repository)).toEqual({ "a/1": "unloaded", "a/2": "ready" });
  });

  test("that cannot be loaded leave the old one where it is", async () => {
    addVersion("a", 1);
    await using repository = await openFakes({ models: [root] });
    await repository.loadAll();
    addVersion("a", 2, { fails: ErrorCode.io });
    const error = await errorOf(repository.load("a"));
    expect(error).toMatchObject({
      status: 400,
      message: 'model "a" cannot be loaded: model.dlfs: it cannot be loaded',
    });
    expect(states(repository)).toEqual({ "a/1": "ready", "a/2": "unavailable" });
    expect(await versionOf(repository)).toBe("1");
    // So does a file in the place of the one that serves.
    writeFake(join(root, "a", "1", "model.dlfs"), { fails: ErrorCode.io, maxBatch: 2 });
    configure("a", { versionPolicy: { specific: [1] } });
    expect((await errorOf(repository.load("a"))).status).toBe(400);
    expect(repository.describe("a", "1").maxBatch).toBe(4);
    writeFake(join(root, "a", "1", "model.dlfs"), { maxBatch: 16 });
    const before = repository.statistics()[0]!.engines[0]!.pid;
    await repository.load("a");
    expect(repository.describe("a", "1").maxBatch).toBe(16);
    const { pid } = repository.statistics()[0]!.engines[0]!;
    expect(pid).not.toBe(before);
    // Nothing has changed since.
    await repository.load("a");
    expect(repository.statistics()[0]!.engines[0]!.pid).toBe(pid);
  });

  test("loads and unloads of a model come one after the other", async () => {
    addVersion("a", 1, { loadMs: 20 });
    await using repository = await openFakes({ models: [root] });
    const changes = [repository.load("a"), repository.unload("a"), repository.load("a"), repository.load("a")];
    await Promise.all(changes);
    expect(await versionOf(repository)).toBe("1");
    expect(states(repository)).toEqual({ "a/1": "ready" });
  });
});

test("one model's trouble is none of another's", async () => {
  addVersion("a", 1);
  addVersion("b", 1, { fails: ErrorCode.io });
  await using repository = await openFakes({ models: [root] });
  const errors = await repository.loadAll();
  expect([...errors.keys()]).toEqual(["b"]);
  expect(states(repository)).toEqual({ "a/1": "ready", "b/1": "unavailable" });
  addVersion("c", 1);
  await repository.load("c");
  const crash = errorOf(repository.infer("c", undefined, { images: [image(Deed.crash)] }));
  expect(await versionOf(repository)).toBe("1");
  expect((await crash).status).toBe(503);
  expect(repository.names).toEqual(["a", "b", "c"]);
  // Nor is what somebody has put beside it.
  mkdirSync(join(root, "not a model"));
  configure("a", "{");
  addVersion("c", 2);
  await repository.load("c");
  expect(await versionOf(repository, "c")).toBe("2");
  // All of them again: new ones are found, and what is gone from the disk goes on serving.
  rmSync(join(root, "c"), { recursive: true });
  addVersion("d", 1);
  expect([...(await repository.loadAll()).keys()]).toEqual(["a", "b"]);
  expect(await versionOf(repository, "d")).toBe("1");
  expect(await versionOf(repository, "c")).toBe("2");
  const refused = await errorOf(repository.load("a"));
  expect(refused.status).toBe(400);
  expect(refused.message).toStartWith('model "a" cannot be loaded: (path): it cannot be read');
  expect(await versionOf(repository)).toBe("1");
});
