import type { AnnotationRecord, AnnotationStore, ImageRecord } from "../annotation-store";
import { IdSet } from "../compact-tables";
import { CROWD } from "./cvat-xml";
import { TextWriter, writeList } from "./text-writer";
import { type ExportOptions, type ExportReport, walkImages } from "./walk";

export interface CocoExportOptions extends ExportOptions {
  /**
   * As CVAT reads it (its format "COCO 1.0"): ids of images, annotations and categories count from 1, and every annotation has
   * the attributes that CVAT looks for, and whether it is a crowd among them, since CVAT forgets `iscrowd`. Default: the ids that
   * the data set came with; where several annotations have the same one, those after the first get new ones.
   */
  cvat?: boolean;
}

/**
 * Writes a split as a COCO annotation file. Both ways `segmentation` is an empty list (CVAT takes boxes from nothing else),
 * `licenses` has an entry (CVAT refuses files without), and ids are unique integers. A score is written where a box has one.
 */
export function exportCoco(store: AnnotationStore, path: string, options: CocoExportOptions): ExportReport {
  const { cvat = false } = options;
  const categories = store.categories();
  const categoryIds = new Map(categories.map(({ id }, i) => [id, cvat ? i + 1 : id]));
  const report: ExportReport = { images: 0, annotations: 0, leftOut: 0, paths: [path] };
  const idOf = cvat ? () => report.annotations : annotationIds(store, options);
  using writer = new TextWriter(path);
  writer.write('{\n"info": {"description": "written by dlfs", "version": "1.0"},\n');
  writer.write('"licenses": [{"id": 0, "name": "", "url": ""}],\n"categories": ');
  writeList(
    writer,
    categories.map(({ id, name, supercategory }) => ({
      id: categoryIds.get(id),
      name,
      supercategory: supercategory ?? "",
    })),
  );
  writer.write(',\n"images": ');
  const imageId = (image: ImageRecord, place: number): number => (cvat ? place + 1 : image.sourceId);
  const images = function* (): Generator<unknown> {
    for (const { image } of walkImages(store, options, "writing images")) {
      const { fileName, width, height } = image;
      yield {
        id: imageId(image, report.images++),
        file_name: fileName,
        width: width ?? 0,
        height: height ?? 0,
        license: 0,
      };
    }
  };
  writeList(writer, images());
  writer.write(',\n"annotations": ');
  const annotation = (box: AnnotationRecord, image: number): unknown => {
    const { categoryId, bbox, area, isCrowd, score } = box;
    report.annotations++;
    return {
      id: idOf(box),
      image_id: image,
      category_id: categoryIds.get(categoryId),
      bbox,
      area,
      iscrowd: isCrowd ? 1 : 0,
      segmentation: [],
      ...(score === null ? {} : { score }),
      ...(cvat ? { attributes: { occluded: false, [CROWD]: isCrowd } } : {}),
    };
  };
  const annotations = function* (): Generator<unknown> {
    let place = 0;
    for (const { image, boxes } of walkImages(store, options, "writing boxes")) {
      const id = imageId(image, place++);
      for (const box of boxes) yield annotation(box, id);
    }
  };
  writeList(writer, annotations());
  writer.write("\n}\n");
  writer.finish();
  return report;
}

/** Gives annotations the ids that they came with, new ones above all others where those are another's or none. */
function annotationIds(store: AnnotationStore, options: ExportOptions): (box: AnnotationRecord) => number {
  let highest = 0;
  for (const { boxes } of walkImages(store, options, "looking at ids")) {
    for (const { sourceId } of boxes) highest = Math.max(highest, sourceId);
  }
  const taken = new IdSet();
  return ({ sourceId }) => (sourceId >= 1 && taken.add(sourceId) ? sourceId : ++highest);
}
