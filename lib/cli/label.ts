import { basename } from "node:path";
import { parseArgs } from "node:util";
import { DeviceImageCodec, loadDataset, showProgress } from "../data";
import { Engine } from "../engine";
import {
  type Detector,
  intoAll,
  intoDataset,
  intoTraining,
  Retraining,
  StudioBackend,
  StudioClient,
  TaskImages,
} from "../label";
import { Device } from "../tensor";
import { stopOnSignals } from "../train";
import { number, positiveInteger, UsageError } from "./arguments";
import { audit, auditHelp } from "./label-audit";
import { exportLabels, filesHelp, importLabelFile } from "./label-files";
import { rank, rankHelp } from "./label-rank";
import { pull, push, studioHelp } from "./label-studio";
import type { Verb } from "./main";

const help = `dlfs label serve: a machine-learning backend for Label Studio. Predicts boxes for its tasks, and passes on what is corrected.

Usage: dlfs label serve MODEL [options]

  MODEL               a model file (dlfs export), a checkpoint, or the folder of a run
  --port N            default 9090; --host HOST: default 127.0.0.1, 0.0.0.0 for everywhere
  --score X           propose no boxes below it; default 0.3
  --data DIR          a data set whose images tasks name: they are read from there, and corrections are written to its store
  --train-split NAME  its splits, default train2017 and val2017
  --val-split NAME
  --live URL          pass corrections on to a training that goes on: the address that dlfs train --live prints
  --local-files DIR   the folder that Label Studio serves as /data/local-files/
  --studio URL        Label Studio's address, for images that were uploaded to it, and for who its users are; LABEL_STUDIO_API_KEY,
                      a token of either kind, is sent to it
  --allow ORIGIN      fetch images from there, too, such as https://images.example (repeatable)
  --user NAME:PASS    what Label Studio must send as basic authentication; default DLFS_LABEL_USER, else nothing
  --train COMMAND     run by the shell when enough was corrected; when it ends with 0 MODEL is loaded again
  --train-after N     annotations that are worth it; default 20
  --train-quiet S     seconds without a further one before it begins; default 60
  --backend NAME      cuda or cpu; default: DLFS_BACKEND, else cuda where it finds a device

In Label Studio: Settings, Model, Connect Model, with the address that is printed; and, for corrections, Settings, Webhooks, with
/webhook below it. Ctrl-C ends it.

${rankHelp}

${auditHelp}

${studioHelp}

${filesHelp}`;

const options = {
  port: { type: "string" },
  host: { type: "string" },
  score: { type: "string" },
  data: { type: "string" },
  "train-split": { type: "string" },
  "val-split": { type: "string" },
  live: { type: "string" },
  "local-files": { type: "string" },
  studio: { type: "string" },
  allow: { type: "string", multiple: true },
  user: { type: "string" },
  train: { type: "string" },
  "train-after": { type: "string" },
  "train-quiet": { type: "string" },
  backend: { type: "string" },
} as const;

/** A model as what Label Studio's requests need. */
async function loadDetector(path: string, device: Device, scoreThreshold: number) {
  const engine = await Engine.load(path, { device });
  const detector: Detector = {
    version: `${basename(path)}@${engine.iteration}`,
    classes: engine.classes,
    detect: (images) => engine.detect(images, { scoreThreshold }),
  };
  return { engine, detector };
}

/** What there is besides serve. */
const parts = new Map([
  ["rank", rank],
  ["audit", audit],
  ["pull", pull],
  ["push", push],
  ["export", exportLabels],
  ["import", importLabelFile],
]);

export const verb: Verb = {
  help,
  async run(argv) {
    const part = parts.get(argv[0] ?? "");
    if (part) return await part(argv.slice(1));
    const { values: args, positionals } = parseArgs({ args: argv, options, strict: true, allowPositionals: true });
    const [what, model, ...others] = positionals;
    if (what !== "serve")
      throw new UsageError(
        `expected serve, ${[...parts.keys()].join(", ")}, got ${what === undefined ? "nothing" : `"${what}"`}`,
      );
    if (model === undefined || others.length > 0) throw new UsageError("expected one MODEL");
    const given = <T>(name: keyof typeof args, parse: (name: string, text: string) => T): T | undefined =>
      args[name] === undefined ? undefined : parse(name, args[name] as string);
    const user = userOf(args.user ?? process.env.DLFS_LABEL_USER);
    const score = given("score", number) ?? 0.3;
    const port = given("port", number);
    const [after, quiet] = [given("train-after", positiveInteger), given("train-quiet", number)];

    await using owned = new AsyncDisposableStack();
    const device = owned.use(new Device({ backend: args.backend as "cpu" | "cuda" | undefined }, console.log));
    let { engine, detector } = await loadDetector(model, device, score);
    owned.defer(() => engine.dispose());
    console.log(`model: ${detector.version}, classes ${detector.classes.join(", ")}`);
    const splits = { trainSplit: args["train-split"], valSplit: args["val-split"] };
    const codec = new DeviceImageCodec(device);
    const dataset =
      args.data === undefined
        ? undefined
        : await loadDataset(args.data, { codec, ...splits, progress: showProgress() });
    if (dataset) owned.use(dataset);
    const targets = [...(dataset ? [intoDataset(dataset)] : []), ...(args.live ? [intoTraining(args.live)] : [])];

    const log = (line: string) => console.log(`${new Date().toISOString()} ${line}`);
    const train = async (command: string) => {
      log(`training: ${command}`);
      const child = Bun.spawn(["sh", "-c", command], { stdin: "ignore", stdout: "inherit", stderr: "inherit" });
      const status = await child.exited;
      if (status !== 0) throw new Error(`it ended with ${status}`);
      const before = engine;
      ({ engine, detector } = await loadDetector(model, device, score));
      await before.dispose();
      log(`training: done, the model is ${detector.version}`);
    };
    const command = args.train;
    const retraining =
      command === undefined
        ? undefined
        : owned.use(
            new Retraining({
              ...{ train: () => train(command), after, ...(quiet !== undefined && { quietMs: 1000 * quiet }) },
              onError: ({ message }) => log(`training: ${message}`),
            }),
          );
    const token = process.env.LABEL_STUDIO_API_KEY;
    const studio = args.studio && token ? new StudioClient({ url: args.studio, token }) : null;
    const backend = owned.use(
      new StudioBackend({
        ...{ port, hostname: args.host, user, retraining, log },
        detector: () => detector,
        ...(studio && { userAddress: addressesOf(studio, log) }),
        images: new TaskImages({
          ...{ dataset, localFiles: args["local-files"], hosts: args.allow },
          ...(args.studio && { labelStudio: { url: args.studio, token } }),
        }),
        ...(targets.length > 0 && { labels: intoAll(targets) }),
      }),
    );
    console.log(`label studio backend: ${backend.url}`);
    using stop = stopOnSignals(() => console.error("\nending"));
    const { promise, resolve } = Promise.withResolvers<void>();
    stop.signal.addEventListener("abort", () => resolve());
    await promise;
    return 0;
  },
};

/** Addresses of users, asked for once, and again for those that are new. */
function addressesOf(client: StudioClient, log: (line: string) => void) {
  let users = new Map<number, string>();
  return async (id: number) => {
    if (!users.has(id)) {
      users = await client.users().catch((error: Error) => {
        log(`who user ${id} is: ${error.message}`);
        return users;
      });
    }
    return users.get(id) || undefined;
  };
}

function userOf(text: string | undefined): { name: string; password: string } | undefined {
  if (text === undefined) return undefined;
  const colon = text.indexOf(":");
  if (colon < 1) throw new UsageError("--user: expected NAME:PASSWORD");
  return { name: text.slice(0, colon), password: text.slice(colon + 1) };
}
