import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { type ImageRecord, showProgress } from "../data";
import {
  addClasses,
  ImageFinder,
  labelConfigOf,
  mergeLabels,
  pullLabels,
  pushLabels,
  StudioClient,
  type StudioProject,
} from "../label";
import { check } from "../native";
import { stopOnSignals } from "../train";
import { positiveInteger, UsageError } from "./arguments";
import { mergeHelp, mergeOptions, openLabels, storeHelp, storeOptions, targetOf, tellMerge } from "./label-store";

export const studioHelp = `dlfs label push: images with their boxes as tasks of a project of Label Studio; what is there already stays as it is.
dlfs label pull: what people have annotated there, into the data set: what is different, as their work, and nothing else.

Usage: dlfs label push --project N --data DIR --split S [options]
       dlfs label pull --project N --data DIR --split S [options]

  --studio URL        Label Studio's address; default LABEL_STUDIO_URL. LABEL_STUDIO_API_KEY must be a token, of either kind
  --project N         its number; or --title NAME, of one that push makes where there is none
${storeHelp}
  --split S           default of pull with --store: all splits; a name that several splits have needs it
  --image-prefix TEXT what comes before images' names in tasks: gs://cells/train/, /data/local-files/?d=

push:
  --upload            upload the images' files; else Label Studio reads them where --image-prefix says
  --list FILE         only these images, in this order: a path a line, or dlfs label rank's JSON lines
  --negatives         images without boxes have been looked at: they get empty annotations

pull: ends with 1 where images were refused: with turned boxes, with shapes that are no boxes, unknown ones; all others are taken.
${mergeHelp}`;

const studioOptions = {
  ...storeOptions,
  studio: { type: "string" },
  project: { type: "string" },
  title: { type: "string" },
} as const;

function clientOf(studio = process.env.LABEL_STUDIO_URL): StudioClient {
  const token = process.env.LABEL_STUDIO_API_KEY;
  if (studio === undefined) throw new UsageError("expected --studio, Label Studio's address");
  if (!token) throw new UsageError("expected LABEL_STUDIO_API_KEY, a token from Account & Settings of Label Studio");
  return new StudioClient({ url: studio, token });
}

/** The project that is asked for; `make` gives one that is not there its labeling configuration. */
async function projectOf(
  client: StudioClient,
  { project, title }: { project?: string; title?: string },
  make?: () => string,
): Promise<StudioProject> {
  if ((project === undefined) === (title === undefined))
    throw new UsageError("expected --project, a number, or --title, a name");
  if (project !== undefined) return await client.project(positiveInteger("project", project));
  const found = await client.projectNamed(title as string);
  if (found) return found;
  check(make !== undefined, "label studio", () => `there is no project "${title}"`);
  return await client.createProject(title as string, make());
}

export async function push(argv: string[]): Promise<number> {
  const { values: args } = parseArgs({
    ...{ args: argv, strict: true, allowPositionals: false },
    options: {
      ...studioOptions,
      upload: { type: "boolean" },
      list: { type: "string" },
      negatives: { type: "boolean" },
    },
  });
  const { split, list, negatives, "image-prefix": imagePrefix } = args;
  if (split === undefined) throw new UsageError("expected --split, the split whose images are sent");
  const client = clientOf(args.studio);
  using labels = await openLabels(args);
  const { store } = labels;
  const images = list === undefined ? undefined : await listed(list, new ImageFinder(store, split));
  const upload = args.upload ? labels.source() : undefined;
  const project = await projectOf(client, args, () => labelConfigOf(store.classes().names));
  console.log(`project ${project.id}: ${project.title}`);
  using stop = stopOnSignals(() => console.error("\nstopping after these tasks; the same command goes on"));
  const show = showProgress();
  const report = await pushLabels(client, project, store, {
    ...{ split, images, imagePrefix, upload, negatives, signal: stop.signal },
    progress: (done, total) => show("sending tasks", done, total),
  });
  const { tasks, present, annotations, predictions, annotated } = report;
  console.log(`${tasks} tasks added, ${annotations} annotations, ${predictions} predictions; ${present} were there`);
  if (annotated > 0)
    console.log(`${annotated} of them have an annotation already, which stays as it is: dlfs label pull takes it`);
  return stop.exitStatus;
}

/** The images of a list, in its order. */
async function listed(path: string, finder: ImageFinder): Promise<ImageRecord[]> {
  const text = await readFile(path, "utf8").catch((error: Error) => {
    throw new UsageError(`--list: ${error.message}`);
  });
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  return lines.map((line, i) => {
    const fail = (message: string): never => {
      throw new UsageError(`--list: ${path}, line ${i + 1}: ${message}`);
    };
    let name: unknown = line;
    if (line.startsWith("{")) {
      try {
        name = (JSON.parse(line) as { image?: unknown }).image;
      } catch (error) {
        fail((error as Error).message);
      }
    }
    if (typeof name !== "string") return fail(`image: expected a name, got ${JSON.stringify(name)}`);
    const image = finder.find(name);
    return typeof image === "string" ? fail(`${name}: ${image}`) : image;
  });
}

export async function pull(argv: string[]): Promise<number> {
  const { values: args } = parseArgs({
    ...{ args: argv, strict: true, allowPositionals: false },
    options: { ...studioOptions, ...mergeOptions },
  });
  const client = clientOf(args.studio);
  const { split, author, "image-prefix": imagePrefix } = args;
  using labels = await openLabels(args);
  const { store, name } = labels;
  const project = await projectOf(client, args);
  using stop = stopOnSignals(() => console.error("\nstopping after this image"));
  const show = showProgress();
  try {
    using pulled = await pullLabels(client, project, { imagePrefix, signal: stop.signal, progress: show });
    console.log(`project ${project.id}: ${project.title}, ${pulled.annotated} of ${pulled.tasks} tasks annotated`);
    for (const line of pulled.problems) console.log(line);
    if (args["add-classes"] && !args["dry-run"]) {
      for (const added of addClasses(store, pulled.store)) console.log(`new class: ${added}`);
    }
    const report = await mergeLabels(store, pulled.store, pulled.inexact, {
      ...{ target: targetOf(store, args), split, author, negatives: true, exact: true, signal: stop.signal },
      progress: (done, total) => show("comparing", done, total),
    });
    return tellMerge(report, name, args["dry-run"] ?? false) || stop.exitStatus;
  } catch (error) {
    if (stop.signal.aborted) return stop.exitStatus;
    throw error;
  }
}
