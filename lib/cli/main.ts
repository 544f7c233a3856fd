#!/usr/bin/env bun
/**
 * The `dlfs` command: finds the verb, loads its file and runs it. A verb is one file of this folder that exports a
 * `Verb`; it parses its arguments and calls the library, and has no logic of its own. Exit statuses: 0 done, 1 failed,
 * 2 called wrongly.
 */
import packageJson from "../../package.json";
import { DlfsError, firstError } from "../native/error";
import { UsageError } from "./arguments";

/** What a verb's file exports as `verb`. */
export interface Verb {
  /** Printed by `dlfs VERB --help`. */
  readonly help: string;
  /** Runs the verb with the arguments that follow it; the result is the exit status. */
  run(args: string[]): number | Promise<number>;
}

interface VerbEntry {
  readonly summary: string;
  /** Verbs are imported when they are called, so that `dlfs --help` loads none of them. */
  readonly load: () => Promise<{ verb: Verb }>;
}

const verbs: Readonly<Record<string, VerbEntry>> = {
  bench: {
    summary: "time training, inference, layers and post-processing, with the device's ceilings and floors beside them",
    load: () => import("./bench"),
  },
  dashboard: {
    summary: "a page of live curves, predictions and the log of trainings, several compared",
    load: () => import("./dashboard"),
  },
  data: {
    summary: "a store of images and boxes: import, export, check, view, split, stats, download",
    load: () => import("./data"),
  },
  doctor: {
    summary: "print what was found here: Bun, the native libraries, devices, the backend that is used",
    load: () => import("./doctor"),
  },
  eval: {
    summary: "measure a trained model, or a file of detections, with COCO's metrics",
    load: () => import("./eval"),
  },
  export: {
    summary: "write a trained model as one file for serving, as ONNX, or its weights as safetensors",
    load: () => import("./export"),
  },
  label: {
    summary:
      "Label Studio and CVAT: predict for tasks, take corrections in; what to label next, what is labelled wrongly",
    load: () => import("./label"),
  },
  launch: {
    summary: "run a program as several processes that train together, one for each GPU",
    load: () => import("./launch"),
  },
  "lr-find": {
    summary: "train while the learning rate grows, and suggest the rate at which the loss falls fastest, with a plot",
    load: () => import("./lr-find"),
  },
  predict: {
    summary: "detect objects on the images of a folder, a bucket, a list or a data set, with a trained model",
    load: () => import("./predict"),
  },
  serve: {
    summary: "answer HTTP requests for detections: the Open Inference Protocol, /predict, metrics, a page to try it on",
    load: () => import("./serve"),
  },
  train: {
    summary: "train a detector on a data set in COCO's layout, by options, a file of settings, or both",
    load: () => import("./train"),
  },
};

function help(): string {
  const width = Math.max(...Object.keys(verbs).map((name) => name.length));
  return [
    `dlfs ${packageJson.version}: ${packageJson.description}`,
    "",
    "Usage: dlfs VERB [options]",
    "",
    ...Object.entries(verbs).map(([name, { summary }]) => `  ${name.padEnd(width)}  ${summary}`),
    "",
    "dlfs VERB --help   the options of a verb",
    "dlfs --version     the version",
  ].join("\n");
}

/** What a verb finds wrong with its arguments, and errors of Node's `parseArgs`: an unknown option, a missing value. */
function isUsageError(error: unknown): error is Error {
  if (error instanceof UsageError) return true;
  return error instanceof Error && "code" in error && String(error.code).startsWith("ERR_PARSE_ARGS");
}

/** Runs the command with its arguments (without program and script); the result is the exit status. */
export async function main(args: string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === "--help" || name === "-h" || name === "help") {
    console.log(help());
    return 0;
  }
  if (name === "--version") {
    console.log(packageJson.version);
    return 0;
  }
  const entry = name !== undefined && Object.hasOwn(verbs, name) ? verbs[name] : undefined;
  if (!entry) {
    console.error(name === undefined ? help() : `dlfs: unknown verb "${name}"; \`dlfs --help\` lists them`);
    return 2;
  }
  try {
    const { verb } = await entry.load();
    if (rest.includes("--help") || rest.includes("-h")) {
      console.log(verb.help);
      return 0;
    }
    return await verb.run(rest);
  } catch (thrown) {
    const error = firstError(thrown);
    if (isUsageError(error)) {
      console.error(`dlfs ${name}: ${error.message}`);
      return 2;
    }
    // Messages of DlfsError say all that a user needs; anything else is a defect, and its stack says where.
    console.error(`dlfs ${name}: ${error instanceof DlfsError ? error.message : Bun.inspect(error)}`);
    return 1;
  }
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
