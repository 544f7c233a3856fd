import { parseArgs } from "node:util";
import { DashboardServer, type Predictor } from "../dashboard";
import { RunPredictor } from "../engine";
import { stopOnSignals } from "../train";
import { oneOf, UsageError } from "./arguments";
import type { Verb } from "./main";

const help = `dlfs dashboard: a page that shows trainings while they go on, and those that have ended.

Usage: dlfs dashboard RUNS... [options]

  RUNS          folders of runs, or folders that hold such, as dlfs train writes them; default: runs
  --port N      default 8010; 0: any free one
  --host HOST   default 127.0.0.1: this machine alone; 0.0.0.0: every network
  --token TEXT  what readers must know; default DLFS_LIVE_TOKEN, else one that is made up and printed
  --edit        boxes of images may be drawn, changed and deleted on the page: in a training that goes on with --live, else in
                the data set that the run was trained on
  --backend NAME  with --edit: what a run's last checkpoint predicts on, cpu (default) or cuda

Without --edit it reads the folders and writes nothing. docs/live.md has more. Ctrl-C ends it.`;

const options = {
  port: { type: "string" },
  host: { type: "string" },
  token: { type: "string" },
  edit: { type: "boolean" },
  backend: { type: "string" },
} as const;

export const verb: Verb = {
  help,
  async run(argv) {
    const { values: args, positionals } = parseArgs({ args: argv, options, strict: true, allowPositionals: true });
    const port = Number(args.port ?? 8010);
    if (!/^\d+$/.test(args.port ?? "0") || port > 65535) {
      throw new UsageError(`--port: expected an integer from 0 to 65535, got "${args.port}"`);
    }
    if (args.token === "") throw new UsageError("--token: it is empty");
    const own = args.token ?? (process.env.DLFS_LIVE_TOKEN || undefined);
    const token = own ?? crypto.randomUUID().replaceAll("-", "");
    const folders = positionals.length > 0 ? positionals : ["runs"];
    const { edit, host: hostname } = args;
    if (args.backend !== undefined && !edit) throw new UsageError("--backend is for --edit");
    const backend = oneOf("backend", args.backend ?? "cpu", ["cpu", "cuda"] as const);
    await using predictor = new RunPredictor({ backend, tuneMs: 0 });
    const predict: Predictor = (run, image) => predictor.predict(run, image);
    await using server = await DashboardServer.open({ folders, port, hostname, token, edit, predict });
    // Behind the #, where browsers keep it to themselves. A token of the user's own is not for the screen.
    console.log(`dashboard: ${server.url}${own === undefined ? `#token=${token}` : ""}`);
    using stop = stopOnSignals(() => console.error("\nending"));
    const { promise, resolve } = Promise.withResolvers<void>();
    stop.signal.addEventListener("abort", () => resolve());
    await promise;
    return 0;
  },
};
