import { stat } from "node:fs/promises";
import type { AnnotationStore } from "./annotation-store";
import { readCoco } from "./coco-reader";
import { checkNewSplit, ImportContent, type ImportOptions, type ImportReport } from "./import-content";
import { JsonReader } from "./json-reader";
import { fileError } from "./local-data-source";
import { showProgress } from "./progress";

/**
 * Imports a COCO annotation file (https://cocodataset.org/#format-data, object detection) into a store: a path, or the
 * file's bytes. Ids need not be contiguous; `area` defaults to the box's, `iscrowd` to 0, an image's size to unknown; other
 * fields are passed over. A file that is not JSON, lacks a field, has a value of the wrong kind, an id of an image or category
 * twice, or an unknown category is a DlfsError that names the file and the field's path, and the store stays as it was.
 * Entries that can be left out are, and are counted in the report: boxes without area or outside their image, annotations
 * of unknown images, images whose file another image has already. Boxes that reach outside are kept as they are for
 * evaluation (training clips them) and reported as clipped.
 *
 * A file is read in pieces: in memory there are some 80 bytes for each image and a fixed amount for the boxes, which are
 * brought into the order of the images through a temporary file where they are many.
 */
export async function importCoco(
  store: AnnotationStore,
  input: string | Uint8Array,
  options: ImportOptions,
): Promise<ImportReport> {
  const { split, folder = "", progress = showProgress() } = options;
  const name = options.name ?? (typeof input === "string" ? input : "annotations");
  const { by = { source: "imported", author: name } } = options;
  checkNewSplit("importCoco", store, split, name);
  const from = await describe(input);
  using content = new ImportContent(name, folder, store.scratchFolder);
  using reader = typeof input === "string" ? JsonReader.open(input, { name }) : new JsonReader(input, name);
  await readCoco(reader, content, progress);
  content.finish();
  return content.store(store, from, { ...options, by, progress });
}

async function describe(input: string | Uint8Array): Promise<{ size: number; modified: number | null }> {
  if (typeof input !== "string") return { size: input.length, modified: null };
  try {
    const info = await stat(input);
    return { size: info.size, modified: Math.floor(info.mtimeMs) };
  } catch (error) {
    throw fileError("importCoco", input, error);
  }
}
