/** What people have annotated in a project of Label Studio, as labels to merge into a data set. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ProgressListener } from "../../data";
import { writeTextAtomic } from "../../formats";
import { importLabels, type LabelFile } from "../label-file";
import type { StudioClient, StudioProject, StudioTaskRecord } from "./studio-client";

export interface PullOptions {
  /** What comes before images' names in tasks. */
  imagePrefix?: string;
  progress?: ProgressListener;
  signal?: AbortSignal;
}

export interface PulledLabels extends LabelFile {
  /** Tasks of the project, and those that somebody has annotated. */
  readonly tasks: number;
  readonly annotated: number;
}

/** Whether somebody has annotated a task, not only skipped it. */
function isAnnotated({ annotations }: StudioTaskRecord): boolean {
  return Array.isArray(annotations) && annotations.some((one) => one?.was_cancelled !== true);
}

/**
 * Fetches a project's annotated tasks, of each the newest annotation, with the addresses of annotators.
 *
 * @throws DlfsError where Label Studio cannot be reached, or answers something else, and as importLabels does
 */
export async function pullLabels(
  client: StudioClient,
  { id, config }: StudioProject,
  { imagePrefix, progress, signal }: PullOptions = {},
): Promise<PulledLabels> {
  const users = await client.users();
  const folder = await mkdtemp(join(tmpdir(), "dlfs-pull-"));
  const ids: number[] = [];
  let tasks = 0;
  try {
    const path = join(folder, `project ${id}`);
    const parts = async function* () {
      for await (const page of client.tasks(id, signal)) {
        tasks += page.length;
        progress?.("fetching tasks", tasks, 0);
        for (const task of page.filter(isAnnotated)) {
          const { data, meta, annotations } = task;
          yield `${ids.length === 0 ? "[" : ","}\n${JSON.stringify({ id: task.id, data, meta, annotations })}`;
          ids.push(task.id);
        }
      }
      yield ids.length === 0 ? "[]" : "\n]";
    };
    await writeTextAtomic(path, parts());
    const file = await importLabels(path, {
      format: "label-studio",
      imageField: config.field,
      imagePrefix,
      users,
      progress,
    });
    // Tasks are known by their numbers, not by their places in what was fetched.
    const inTask = (text: string) =>
      text.replace(/\[(\d+)\](?=\.annotations| \()/, (_, i: string) => `task ${ids[Number(i)]}`);
    return {
      ...{ store: file.store, isExplicit: true, tasks, annotated: ids.length },
      inexact: new Map([...file.inexact].map(([image, reason]) => [image, inTask(reason)])),
      problems: file.problems.map((line) => inTask(line).replaceAll(`${path}, `, "")),
      [Symbol.dispose]: () => file[Symbol.dispose](),
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
