/** Images with their boxes into a project of Label Studio: what it does not have yet, and nothing over people's work. */
import {
  type AnnotationRecord,
  type AnnotationStore,
  type DataSource,
  type ImageRecord,
  type StudioTask,
  studioTask,
} from "../../data";
import { check } from "../../native/error";
import { isObject } from "../../native/json";
import { ImageFinder } from "../find-image";
import type { StudioClient, StudioProject, StudioTaskRecord } from "./studio-client";

export interface PushOptions {
  /** The split whose images are meant. */
  split: string;
  /** Which of them, in the order of their tasks. Default: all that can be used. */
  images?: readonly ImageRecord[];
  /** What comes before images' names in tasks. */
  imagePrefix?: string;
  /** Where the images' files are: they are uploaded. Default: Label Studio reads them itself. */
  upload?: DataSource;
  /** Whether images without boxes have been looked at: they get empty annotations. Default false: they are to be labelled. */
  negatives?: boolean;
  signal?: AbortSignal;
  progress?: (done: number, total: number) => void;
}

export interface PushReport {
  /** New tasks. */
  tasks: number;
  /** Images that had a task with all there is. */
  present: number;
  /** Annotations and predictions, with new tasks or added to those that were there. */
  annotations: number;
  predictions: number;
  /** Images whose boxes stayed behind, since their task has an annotation already. */
  annotated: number;
}

/** Tasks that are posted at a time. */
const BATCH = 50;

/** What the project has of an image. */
interface Present {
  id: number;
  isAnnotated: boolean;
  models: Set<string>;
}

/**
 * Adds a task for each image that the project has none of, and what tasks of the others lack: an annotation where there are boxes
 * of people or files and nobody has annotated, predictions of models that are not there yet. Nothing that is there is changed, so
 * that the same again does nothing, and goes on where it was stopped.
 *
 * @throws DlfsError where Label Studio cannot be reached or refuses, and for classes that the project does not have, before
 *   anything is sent
 */
export async function pushLabels(
  client: StudioClient,
  project: StudioProject,
  store: AnnotationStore,
  options: PushOptions,
): Promise<PushReport> {
  const { split, negatives = false, upload, imagePrefix, signal, progress } = options;
  const names = new Map(store.categories().map(({ id, name }) => [id, name]));
  const images = options.images ?? store.images(split, { usable: true });
  checkClasses(project, store, images, names);
  const report: PushReport = { tasks: 0, present: 0, annotations: 0, predictions: 0, annotated: 0 };
  const finder = new ImageFinder(store, split);
  const { config, id } = project;
  let known = await presentIn(client, project, finder, signal);
  const users = new Set((await client.users()).values());
  const taskOf = (image: ImageRecord, boxes: readonly AnnotationRecord[]) => {
    const control = { fromName: config.fromName, toName: config.toName };
    const task = studioTask(image, boxes, names, { control, imagePrefix, imageField: config.field, negatives });
    const author = authorOf(boxes);
    const by = author !== null && users.has(author) && { completed_by: { email: author } };
    return { ...task, annotations: task.annotations.map((annotation) => ({ ...annotation, ...by })) };
  };
  for (let at = 0; at < images.length && !signal?.aborted; at += BATCH) {
    const part = images.slice(at, at + BATCH);
    const boxes = store.annotationsOfBatch(part.map((image) => image.id));
    const fresh: { image: ImageRecord; task: StudioTask }[] = [];
    for (const [i, image] of part.entries()) {
      const task = taskOf(image, boxes[i] as AnnotationRecord[]);
      const there = known.get(image.id);
      if (there) await complete(client, there, task, report);
      else fresh.push({ image, task });
    }
    if (upload) {
      for (const { image, task } of fresh) {
        const bytes = await upload.read(image.key, { signal });
        task.data[config.field] = await client.upload(id, image.fileName, bytes as Uint8Array<ArrayBuffer>);
      }
    }
    await client.repeat(async (attempt) => {
      // Whether they were taken is not known where an answer was lost.
      if (attempt > 1) known = await presentIn(client, project, finder, signal);
      const left = fresh.filter(({ image }) => !known.has(image.id));
      if (left.length > 0)
        await client.post(
          `api/projects/${id}/import`,
          left.map(({ task }) => task),
        );
    });
    report.tasks += fresh.length;
    for (const { task } of fresh) {
      report.annotations += task.annotations.length;
      report.predictions += task.predictions.length;
    }
    progress?.(at + part.length, images.length);
  }
  return report;
}

/** Label Studio refuses all tasks of a request for one unknown class, or shows boxes without one. */
function checkClasses(
  { title, config }: StudioProject,
  store: AnnotationStore,
  images: readonly ImageRecord[],
  names: ReadonlyMap<number, string>,
): void {
  const missing = new Set<string>();
  for (let at = 0; at < images.length; at += 2000) {
    for (const boxes of store.annotationsOfBatch(images.slice(at, at + 2000).map(({ id }) => id))) {
      for (const { categoryId } of boxes) missing.add(names.get(categoryId) as string);
    }
  }
  for (const label of config.labels) missing.delete(label);
  check(
    missing.size === 0,
    `project "${title}"`,
    () => `its labeling configuration lacks ${[...missing].join(", ")}; it has ${config.labels.join(", ")}`,
  );
}

/** The tasks of a project by the images that they are of. */
async function presentIn(
  client: StudioClient,
  { id, config }: StudioProject,
  finder: ImageFinder,
  signal?: AbortSignal,
): Promise<Map<number, Present>> {
  const found = new Map<number, Present>();
  for await (const page of client.tasks(id, signal)) {
    for (const task of page) {
      const { dlfs } = isObject(task.meta) ? task.meta : {};
      const address = isObject(dlfs) ? dlfs.file : isObject(task.data) ? task.data[config.field] : undefined;
      const image = typeof address === "string" ? finder.find(address) : "";
      if (typeof image !== "string" && !found.has(image.id)) found.set(image.id, presentOf(task));
    }
  }
  return found;
}

function presentOf({ id, annotations, predictions }: StudioTaskRecord): Present {
  const models = Array.isArray(predictions) ? predictions.map((one) => String(one?.model_version)) : [];
  return { id, isAnnotated: Array.isArray(annotations) && annotations.length > 0, models: new Set(models) };
}

/** Adds to a task what it lacks. */
async function complete(client: StudioClient, there: Present, task: StudioTask, report: PushReport): Promise<void> {
  const post = (path: string, body: unknown, isThere: (now: Present) => boolean) =>
    client.repeat(async (attempt) => {
      if (attempt > 1 && isThere(presentOf(await client.task(there.id)))) return;
      await client.post(path, body);
    });
  let added = 0;
  const [annotation] = task.annotations;
  if (annotation && there.isAnnotated) report.annotated++;
  if (annotation && !there.isAnnotated) {
    const { result } = annotation;
    await post(`api/tasks/${there.id}/annotations/`, { result }, ({ isAnnotated }) => isAnnotated);
    report.annotations++;
    added++;
  }
  for (const prediction of task.predictions) {
    const { model_version: model } = prediction;
    if (there.models.has(model)) continue;
    await post("api/predictions/", { task: there.id, ...prediction }, ({ models }) => models.has(model));
    report.predictions++;
    added++;
  }
  if (added === 0) report.present++;
}

/** The one person whose all boxes are that no model has found; null where there are several, or none. */
function authorOf(boxes: readonly AnnotationRecord[]): string | null {
  const own = boxes.filter(({ source }) => source !== "model");
  const [first] = own;
  const isOnes =
    first?.source === "human" && own.every(({ author, source }) => source === "human" && author === first.author);
  return isOnes ? first.author : null;
}
