/** Importing and exporting by a format's name, and telling formats apart. */
import { open, readdir, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { DlfsError, ErrorCode } from "../../native/error";
import type { AnnotationStore } from "../annotation-store";
import { importCoco } from "../coco-import";
import type { ImportReport } from "../import-content";
import { fileError } from "../local-data-source";
import type { ProgressListener } from "../progress";
import { exportCoco } from "./coco-export";
import { exportCsv, importCsv } from "./csv";
import { exportCvatXml, importCvatXml } from "./cvat-xml";
import { exportLabelStudio, importLabelStudio, type LabelStudioImportOptions } from "./label-studio";
import { exportVoc, importVoc, type VocOptions } from "./voc";
import type { ExportOptions, ExportReport } from "./walk";
import { exportYolo, importYolo, readYoloConfig } from "./yolo";

export const importFormats = ["coco", "voc", "yolo", "csv", "label-studio", "cvat-xml"] as const;
export const exportFormats = ["coco", "cvat", "cvat-xml", "voc", "yolo", "csv", "label-studio"] as const;

export type ImportFormat = (typeof importFormats)[number];
export type ExportFormat = (typeof exportFormats)[number];

export interface ImportDatasetOptions
  extends VocOptions,
    Pick<LabelStudioImportOptions, "imagePrefix" | "imageField" | "predictions" | "annotatedOnly" | "users"> {
  /** Default: as the input looks. */
  format?: ImportFormat;
  /**
   * Default: what an annotation file called instances_SPLIT.json names, else "train"; of YOLO, and of a folder in COCO's layout, all
   * splits.
   */
  split?: string;
  /** Put before the images' names to make their keys. Default: as the format has it. */
  folder?: string;
  /** Folder that keys are relative to. Default: the data set's; kept as the store's metadata "images". */
  images?: string;
  progress?: ProgressListener;
}

/**
 * Imports a file or the folder of a data set.
 *
 * @throws DlfsError where the format cannot be told, and as the importers do
 */
export async function importDataset(
  store: AnnotationStore,
  input: string,
  options: ImportDatasetOptions,
): Promise<ImportReport[]> {
  const { format = await formatOf(input), split = splitNamed(input), progress, firstPixel, imagePrefix } = options;
  const given = options.images === undefined ? undefined : resolve(options.images);
  const common = { split, folder: options.folder, progress };
  const withImages = (images: string) => ({ ...common, metadata: { images } });
  switch (format) {
    case "coco": {
      const files = (await kindOf(input)) === "folder" ? await cocoFiles(input, options.split) : { [split]: input };
      const reports: ImportReport[] = [];
      for (const [name, file] of Object.entries(files)) {
        const { root, folder } = await cocoImages(file, name, given);
        const images = { ...withImages(root), split: name, folder: options.folder ?? folder };
        reports.push(await importCoco(store, file, images));
      }
      return reports;
    }
    case "voc": {
      const nested = (await kindOf(join(input, "JPEGImages"))) === "folder";
      const folder = options.folder ?? (nested && !given ? "JPEGImages" : "");
      return [await importVoc(store, input, { ...withImages(given ?? resolve(input)), folder, firstPixel })];
    }
    case "yolo": {
      const { root, splits } = await readYoloConfig(input);
      const reports: ImportReport[] = [];
      for (const name of options.split === undefined ? Object.keys(splits) : [options.split]) {
        reports.push(await importYolo(store, input, { ...withImages(given ?? root), split: name }));
      }
      return reports;
    }
    case "csv":
      return [await importCsv(store, input, withImages(given ?? resolve(dirname(input))))];
    case "cvat-xml":
      return [await importCvatXml(store, input, withImages(given ?? resolve(dirname(input))))];
    case "label-studio": {
      const { imageField, predictions, annotatedOnly, users } = options;
      const images = withImages(given ?? resolve(dirname(input)));
      const how = { imagePrefix, imageField, predictions, annotatedOnly, users };
      return [await importLabelStudio(store, input, { ...images, ...how })];
    }
  }
}

/**
 * The annotation files of a folder in COCO's layout, by split: annotations/instances_SPLIT.json, or annotations/SPLIT.json where
 * none is called that. Without a name: all, but for one that holds two others (trainval, beside train and val), whose images
 * would come twice.
 */
async function cocoFiles(input: string, wanted: string | undefined): Promise<Record<string, string>> {
  const folder = join(input, "annotations");
  const names = (await readdir(folder).catch(() => [])).filter((name) => name.endsWith(".json")).sort();
  const instances = names.filter((name) => name.startsWith("instances_"));
  const found = Object.fromEntries(
    (instances.length > 0 ? instances : names).map((name) => [
      instances.length > 0 ? splitNamed(name) : basename(name, ".json"),
      join(folder, name),
    ]),
  );
  const splits = Object.keys(found);
  const fail = (message: string): never => {
    throw new DlfsError(ErrorCode.io, "import", `${input}: ${message}`);
  };
  if (splits.length === 0) return fail("no annotations/instances_SPLIT.json is in it");
  if (wanted !== undefined) {
    const file = found[wanted] ?? fail(`no split "${wanted}", there are ${splits.join(", ")}`);
    return { [wanted]: file };
  }
  const isJoined = (name: string) => splits.some((a) => splits.some((b) => a !== name && b !== name && a + b === name));
  for (const name of splits) if (isJoined(name)) delete found[name];
  return found;
}

/** Where the images of a COCO file are: beside the folder of annotations, as loadDataset looks for them. */
async function cocoImages(
  input: string,
  split: string,
  given: string | undefined,
): Promise<{ root: string; folder: string }> {
  const here = resolve(dirname(input));
  const root = given ?? (basename(here) === "annotations" ? dirname(here) : here);
  for (const folder of [split, `images/${split}`, "images"]) {
    if ((await kindOf(join(root, folder))) === "folder") return { root, folder };
  }
  return { root, folder: "" };
}

function splitNamed(input: string): string {
  return /^(?:instances|labels|annotations)_(.+)\.\w+$/.exec(basename(input))?.[1] ?? "train";
}

async function kindOf(path: string): Promise<"file" | "folder" | null> {
  const info = await stat(path).catch(() => null);
  return info === null ? null : info.isDirectory() ? "folder" : "file";
}

/** What the input looks like. */
async function formatOf(input: string): Promise<ImportFormat> {
  const kind = await kindOf(input);
  const fail = (message: string): never => {
    const hint = `--format says what it is: ${importFormats.join(", ")}`;
    throw new DlfsError(ErrorCode.io, "import", `${input}: ${message}; ${hint}`);
  };
  if (kind === null) throw new DlfsError(ErrorCode.io, "import", `${input}: no such file or folder`);
  if (kind === "folder") {
    if ((await kindOf(join(input, "data.yaml"))) === "file") return "yolo";
    const names = await readdir(input);
    if (names.includes("Annotations") || names.some((name) => name.endsWith(".xml"))) return "voc";
    const annotations = await readdir(join(input, "annotations")).catch(() => []);
    if (annotations.some((name) => name.endsWith(".json"))) return "coco";
    return fail("neither annotations/instances_SPLIT.json nor data.yaml nor XML files are in it");
  }
  if (/\.csv$/i.test(input)) return "csv";
  if (/\.ya?ml$/i.test(input)) return "yolo";
  if (/\.xml$/i.test(input)) return "cvat-xml";
  const first = await firstCharacter(input);
  if (first === "{") return "coco";
  return first === "[" ? "label-studio" : fail(`starts with ${JSON.stringify(first)}`);
}

async function firstCharacter(path: string): Promise<string> {
  try {
    await using file = await open(path, "r");
    const { buffer, bytesRead } = await file.read(Buffer.alloc(4096), 0, 4096, 0);
    return (
      buffer
        .toString("utf8", 0, bytesRead)
        .replace(/^\ufeff/, "")
        .trimStart()[0] ?? ""
    );
  } catch (error) {
    throw fileError("import", path, error);
  }
}

export interface ExportDatasetOptions extends ExportOptions, VocOptions {
  imagePrefix?: string;
}

/** Writes a split in a format: a file, or of voc and yolo into a folder. */
export async function exportDataset(
  store: AnnotationStore,
  format: ExportFormat,
  out: string,
  options: ExportDatasetOptions,
): Promise<ExportReport> {
  switch (format) {
    case "coco":
    case "cvat":
      return exportCoco(store, out, { ...options, cvat: format === "cvat" });
    case "voc":
      return exportVoc(store, out, options);
    case "yolo":
      return exportYolo(store, out, options);
    case "csv":
      return exportCsv(store, out, options);
    case "cvat-xml":
      return exportCvatXml(store, out, options);
    case "label-studio":
      return exportLabelStudio(store, out, options);
  }
}
